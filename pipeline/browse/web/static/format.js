// Numbers and pieces as people read them.

const whole = new Intl.NumberFormat("en-US");

export const count = (value) => whole.format(value);

/** "1 record", "2,000 records". */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Three significant digits; large values whole. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return count(value);
  const size = Math.abs(value);
  if (size >= 1000) return size < 1e7 ? count(Math.round(value)) : value.toExponential(2);
  if (size > 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

export const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;

/** A probability: 0.987, 3.2e-5; a question mark where it is not known. */
export function probability(value) {
  if (value === null || value === undefined) return "?";
  return value < 0.001 && value > 0 ? value.toExponential(1) : value.toFixed(3);
}

/** A piece of a tokenizer as text: its mark of a leading blank is a blank; the byte of a line break breaks the line. */
export const pieceText = (piece) => (piece === "<0x0A>" ? "↵\n" : piece.replaceAll("\u2581", " "));

/** A piece where blanks must be seen. */
export const pieceShown = (piece) => piece.replaceAll("\u2581", "␣").replaceAll(" ", "␣") || "␣";

export function bytes(value) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export function duration(seconds) {
  if (seconds >= 172800) return `${(seconds / 86400).toFixed(1)} days`;
  if (seconds >= 3600) return `${(seconds / 3600).toFixed(1)} h`;
  return seconds >= 120 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds)} s`;
}
