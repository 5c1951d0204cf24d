// Requests to the server, and how their errors are shown.

import { $ } from "./state.js";

const SHOWN_MS = 10_000; // an error stays at least so long, unless it is closed

export async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer: is `ecgbyte serve` still running?");
  }
  if (!response.ok) {
    let body = {};
    try { body = await response.json(); } catch { /* no JSON */ }
    const error = new Error(body.error || `The server returned status ${response.status}.`);
    error.status = response.status;
    throw error;
  }
  return response;
}

export const getJson = async (path) => (await request(path)).json();

export const post = (path, body) => request(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

export const postJson = async (path, body) => (await post(path, body)).json();

let shownAt = -SHOWN_MS;

export function showError(error) {
  shownAt = performance.now();
  $("error-text").textContent = error.message || String(error);
  $("error").hidden = false;
}

export function hideError() {
  $("error").hidden = true;
}

// Wrap an event handler so that its error is shown. An older error goes once it could be read.
export const guarded = (handler) => async (event) => {
  if (performance.now() - shownAt > SHOWN_MS) hideError();
  try { await handler(event); } catch (error) { showError(error); }
};
