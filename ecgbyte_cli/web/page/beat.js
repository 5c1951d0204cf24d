// The picture of the median beat of an open ECG: drawn when its panel is opened.

import { request } from "./api.js";
import { element } from "./state.js";

export function createBeatPanel(ecg) {
  const image = element("img", { alt: `Median beat of each lead of ${ecg.about.name}, with the boundaries of P, QRS and T` });
  const reason = element("p", { role: "status" });
  const panel = element("details", { className: "beat" }, element("summary", {}, "Median beat"), reason, image);
  image.onload = () => {
    image.hidden = false;
    reason.textContent = "Of the ten seconds from the start of the sheet.";
  };
  // The picture itself does not say why there is none.
  image.onerror = () => request(image.src).catch((error) => { reason.textContent = error.message; });
  panel.addEventListener("toggle", () => {
    if (!panel.open) return;
    image.hidden = true;
    reason.textContent = "Measuring …";
    image.src = `api/records/${ecg.id}/beat.png?start=${ecg.start}`;
  });
  return panel;
}
