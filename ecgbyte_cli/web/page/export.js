// Copying answers, and saving the sheet and the findings.

import { request } from "./api.js";
import { sheetQuery } from "./sheet.js";
import { state } from "./state.js";

const DOTS_PER_MM = 300 / 25.4;
const POINTS_PER_MM = 72 / 25.4;
const LARGEST = 12_000; // pixels in a row of a picture

export async function copyText(text, button) {
  await navigator.clipboard.writeText(text);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const fileName = (ecg, extension) => `${ecg.about.name.split("/").pop().replace(/[^\w.-]+/g, "_")}.${extension}`;

// Save the sheet as it is drawn on paper: SVG, PNG or PDF, at its scale.
export async function saveSheet(ecg, format) {
  const address = `api/records/${ecg.id}/sheet.svg?${sheetQuery(ecg)}`;
  if (format === "svg") return save(await (await request(address)).blob(), fileName(ecg, "svg"));
  const { width, height } = ecg.svg.viewBox.baseVal; // mm
  const canvas = await paint(address, width, height);
  if (format === "png") return save(await toBlob(canvas, "image/png"), fileName(ecg, "png"));
  const picture = new Uint8Array(await (await toBlob(canvas, "image/jpeg", 0.95)).arrayBuffer());
  save(pdfOf(picture, canvas, width * POINTS_PER_MM, height * POINTS_PER_MM), fileName(ecg, "pdf"));
}

const toBlob = (canvas, type, quality) => new Promise((resolve) => { canvas.toBlob(resolve, type, quality); });

async function paint(address, width, height) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const scale = Math.min(DOTS_PER_MM, LARGEST / width);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// A PDF file of one page, as large as its one picture, a JPEG.
function pdfOf(picture, canvas, width, height) {
  const place = `q ${width.toFixed(3)} 0 0 ${height.toFixed(3)} 0 0 cm /P Do Q`;
  const objects = [
    ["<</Type/Catalog/Pages 2 0 R>>"],
    ["<</Type/Pages/Kids[3 0 R]/Count 1>>"],
    [`<</Type/Page/Parent 2 0 R/MediaBox[0 0 ${width.toFixed(3)} ${height.toFixed(3)}]`
      + " /Contents 4 0 R/Resources<</XObject<</P 5 0 R>>>>>>"],
    [`<</Length ${place.length}>>\nstream\n${place}\nendstream`],
    [`<</Type/XObject/Subtype/Image/Width ${canvas.width}/Height ${canvas.height}/ColorSpace/DeviceRGB`
      + ` /BitsPerComponent 8/Filter/DCTDecode/Length ${picture.length}>>\nstream\n`, picture, "\nendstream"],
  ];
  const parts = ["%PDF-1.4\n"];
  const length = () => parts.reduce((sum, part) => sum + part.length, 0);
  const places = objects.map((object, i) => {
    const at = length();
    parts.push(`${i + 1} 0 obj\n`, ...object, "\nendobj\n");
    return at;
  });
  const table = length();
  parts.push(`xref\n0 ${objects.length + 1}\n0000000000 65535 f \n`,
    ...places.map((at) => `${String(at).padStart(10, "0")} 00000 n \n`),
    `trailer\n<</Size ${objects.length + 1}/Root 1 0 R>>\nstartxref\n${table}\n%%EOF\n`);
  return new Blob(parts, { type: "application/pdf" });
}

// Save the findings of the open ECGs as a CSV table: record, finding, probability.
export function saveFindings() {
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const rows = state.findings.flatMap((ecg) => {
    const name = state.ecgs.find((open) => open.id === ecg.record)?.about.name;
    return [...ecg.rhythms, ...ecg.findings].map(({ words, probability, kind }) => (
      [name, kind, words, probability.toFixed(6)].map(quoted).join(",")));
  });
  save(new Blob([["record,kind,finding,probability", ...rows, ""].join("\n")], { type: "text/csv" }), "findings.csv");
}
