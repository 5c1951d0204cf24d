// Requests to the server, and how their errors are shown.

import { $ } from "./state.js";

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
    throw new Error(body.error || `The server returned status ${response.status}.`);
  }
  return response;
}

export const getJson = async (path) => (await request(path)).json();

export const post = (path, body) => request(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

export const postJson = async (path, body) => (await post(path, body)).json();

export function showError(error) {
  $("error").textContent = error ? error.message || String(error) : "";
  $("error").hidden = !error;
}

// Wrap an event handler so that its error is shown.
export const guarded = (handler) => async (event) => {
  showError();
  try { await handler(event); } catch (error) { showError(error); }
};
