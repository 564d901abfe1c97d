// Figures as people read them, in the same words as scaler's commands; and elements whose text is only ever text.

const GIB = 1024 ** 3;

export function gib(size) {
  if (size === null || size === undefined) return "unknown";
  return Math.abs(size) < GIB / 10 ? `${Math.round(size / 1024 ** 2)} MiB` : `${(size / GIB).toFixed(2)} GiB`;
}

export function percent(ratio) {
  return ratio === null || ratio === undefined ? "unknown" : `${(100 * ratio).toFixed(1)} %`;
}

export function duration(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return seconds < 6000 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function counted(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

export function countdown(seconds) {
  const left = Math.max(0, Math.ceil(seconds));
  const pair = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(left / 3600);
  const minutes = Math.floor(left / 60) % 60;
  return hours ? `${hours}:${pair(minutes)}:${pair(left % 60)}` : `${minutes}:${pair(left % 60)}`;
}

// Of the person's own clock, always with 24 hours: the journal and the commands have it so.
export function clock(wallS, seconds = true) {
  const format = { hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...(seconds ? { second: "2-digit" } : {}) };
  return new Date(wallS * 1000).toLocaleTimeString("en-GB", format);
}

export function dayOf(date) {
  return date.toLocaleDateString("en-GB", { weekday: "short", day: "numeric", month: "short" });
}

// The clock then, with the day before it where that is not the day of `nowS`.
export function moment(wallS, nowS) {
  const [then, today] = [wallS, nowS].map((seconds) => new Date(seconds * 1000));
  return then.toDateString() === today.toDateString() ? clock(wallS) : `${dayOf(then)}, ${clock(wallS)}`;
}

export function secondsOf(event) {
  return Date.parse(event.at) / 1000;
}

// The value of an object that the daemon sent: a level may be called "constructor".
export function of(object, key) {
  return object && Object.hasOwn(object, key) ? object[key] : undefined;
}

export function make(name, { text, cls, colour, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (cls) made.className = cls;
  if (colour) made.style.setProperty("--colour", colour);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A sentence in which a command stands between backticks.
export function withCommands(sentence) {
  return sentence.split("`").map((part, place) => (place % 2 ? make("code", { text: part }) : part));
}

export function draw(name, attributes = {}, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "colour") made.style.setProperty("--colour", value);
    else made.setAttribute(key, value);
  }
  if (text !== undefined) made.textContent = text;
  return made;
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const retired = new Map();

// From --low for the smallest level to --high for the largest; "off" has its own, and so has, among warm colours, each
// level that is no longer on the ladder.
export function colourOf(level, levels) {
  const place = levels.indexOf(level);
  if (place < 0 && level === "off") return "var(--off)";
  if (place < 0) {
    if (!retired.has(level)) retired.set(level, retired.size);
    return `oklch(62% 0.11 ${(20 + 55 * retired.get(level)) % 140})`;
  }
  const share = levels.length < 2 ? 100 : Math.round((100 * place) / (levels.length - 1));
  return `color-mix(in oklch, var(--high) ${share}%, var(--low))`;
}
