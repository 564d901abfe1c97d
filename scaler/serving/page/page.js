// The page: what the daemon tells, put where a person looks. Every text goes in as text; see make() and say().

import { ask, forgetToken, keepToken, Refused, Stream, TokenNeeded } from "/page/daemon.js";
import { Picture } from "/page/picture.js";
import { clock, colourOf, countdown, counted, dayOf, duration, gib, make, moment, of, percent, say, secondsOf, withCommands } from "/page/words.js";

const REFRESH_MS = 1000, SETTLE_MS = 150, MOST_EVENTS = 60, TABLE_ROWS = 24;
const TOLD_OF = new Set(["decision", "switched", "switch_failed", "died", "pin", "reconfigured", "hurried", "advised"]);
const LISTED = new Set(["decision", "died", "pin", "standby_lost", "unload_failed", "reconfigured"]);
const WAYS = { up: "Climbing", down: "Stepping down" };
const $ = (id) => document.getElementById(id);
const state = { status: null, fault: "", usage: {}, points: [], events: [], decisions: [], decided: null, levels: [], intervalS: 10, lastS: 3600, now: 0, ahead: 0 };
const pictures = new Map();
const rungs = new Map();
let lastRefresh = 0, refreshing = false, again = false, pending = 0, deadline = null;

// ------------------------------------------------------------------ what is known

// The daemon's clock, not the browser's: they may be on different machines.
function now() {
  return Date.now() / 1000 + state.ahead;
}

async function loadHistory() {
  const { lastS } = state;
  let told;
  try {
    told = await ask(`/history?last_s=${lastS}`);
    state.fault = "";
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    state.fault = error.message; // such as a damaged journal: the rest goes on
    return;
  }
  if (lastS !== state.lastS) return; // others were asked for meanwhile
  state.ahead = told.now - Date.now() / 1000;
  const first = told.points[0]?.at ?? Infinity;
  // What was drawn before a restart stays, where the daemon has no recording of it.
  const before = told.interval_s === state.intervalS ? state.points.filter((point) => point.at < first) : [];
  state.points = [...before, ...told.points];
  state.intervalS = told.interval_s;
  state.events = told.events;
  state.decisions = told.events.filter((event) => event.event === "decision");
}

async function loadStatus() {
  const status = await ask("/status");
  state.status = status;
  state.levels = status.effective.map((level) => level.level);
  const wallS = status.reading?.wall_s;
  state.usage = { ...gpuUsage(status), ...status.usage };
  if (wallS && Object.keys(state.usage).length) keep({ at: wallS, serving: status.serving, usage: state.usage });
}

// The GPUs that no level takes anything of, too.
function gpuUsage(status) {
  const known = (status.reading?.gpus ?? []).filter((gpu) => gpu.own_bytes !== null);
  return Object.fromEntries(known.map((gpu) => {
    const own = Math.min(gpu.own_bytes, gpu.used_bytes);
    return [`gpu${gpu.index}`, { total_bytes: gpu.total_bytes, own_bytes: own, other_bytes: gpu.used_bytes - own }];
  }));
}

// As the daemon does: of each stretch of time the reading with the most in use.
function keep(point) {
  const stretch = (one) => Math.floor(one.at / state.intervalS);
  // The clock was set back: nothing would be kept until it has caught up.
  while (state.points.length && stretch(state.points.at(-1)) > stretch(point)) state.points.pop();
  const last = state.points.at(-1);
  const fullest = (one) => Math.max(...Object.values(one.usage).map((part) => (part.own_bytes + part.other_bytes) / part.total_bytes));
  if (!last || stretch(point) > stretch(last)) state.points.push(point);
  else if (stretch(point) === stretch(last) && fullest(point) >= fullest(last)) state.points[state.points.length - 1] = point;
  const oldest = point.at - state.lastS - state.intervalS;
  while (state.points.length && state.points[0].at < oldest) state.points.shift();
}

async function refresh(history) {
  if (refreshing) {
    again ||= history;
    return;
  }
  refreshing = true;
  lastRefresh = performance.now();
  try {
    if (history) await loadHistory();
    await loadStatus();
    render();
  } catch (error) {
    // The stream tells whether the daemon is gone, or wants another token.
    if (error instanceof Refused) trouble(error.message);
  } finally {
    refreshing = false;
  }
  if (again) {
    again = false;
    await refresh(true);
  }
}

// Some events come together: a decision, a budget, a switch.
function soon() {
  clearTimeout(pending);
  pending = setTimeout(async () => {
    if (refreshing) return soon();
    await refresh(true);
    await Promise.all([loadAdvice(), loadDays()]);
  }, SETTLE_MS);
}

function take(name, data) {
  if (name === "reading") {
    if (!document.hidden && performance.now() - lastRefresh >= REFRESH_MS) refresh(false);
  } else if (TOLD_OF.has(name)) {
    tell(name, data);
    soon();
  }
}

// The one line that a screen reader says when the level changes.
function tell(name, data) {
  const words = {
    decision: () => `${data.direction === "same" ? `Loading ${data.dest} anew` : `${WAYS[data.direction]} from ${data.source} to ${data.dest}`}: ${data.reason}`,
    switched: () => (data.level === "off" ? "Nothing is loaded now" : `${data.level} answers now`),
    switch_failed: () => `${data.level} could not be loaded, ${data.still_serving} serves: ${data.reason}`,
    died: () => `${data.level} died: ${data.reason}`,
    pin: () => (data.level === null ? "Unpinned: the machine decides again" : `Pinned to ${data.level}`),
  }[name]?.();
  if (words) say($("told"), `${clock(now())}  ${words}`);
}

// ------------------------------------------------------------------ drawing

function render() {
  const { status } = state;
  if (!status) return;
  state.now = now();
  $("board").hidden = false;
  trouble(troubles(status));
  renderNow(status);
  renderNext(status);
  renderPictures();
  renderLadder(status);
  renderMachine(status);
  renderEvents();
}

function troubles(status) {
  const told = [...status.not_permitted, ...(state.fault ? [state.fault] : [])];
  if (!status.monitoring) told.unshift("the machine is not watched at the moment");
  if (status.missing.length) told.push(`not read now: ${status.missing.join(", ")}`);
  return told.join("; ");
}

function trouble(text) {
  say($("trouble"), text);
  $("trouble").hidden = !text;
}

function renderNow(status) {
  const { state: meant, serving, settled, last_decision: decision, reading, pinned } = status;
  const shown = serving === "off" ? meant : serving;
  say($("level"), shown);
  document.title = `${shown} · scaler`;
  say($("machine"), status.tier ? `tier ${status.tier}` : "");
  const tag = !settled ? going(status) : pinned ? "pinned" : "";
  say($("level-tag"), tag);
  $("level-tag").hidden = !tag;
  const [, ...reasons] = status.why;
  if (decision && reading?.wall_s) reasons.push(`since ${moment(decidedAt(decision, reading), state.now)}`);
  fill($("why"), reasons, (sentence) => make("li", {}, ...withCommands(sentence)));
  const speed = of(status.performance, serving);
  say($("running"), String(status.answering));
  say($("waiting"), String(status.waiting));
  say($("speed"), speed?.tokens_per_s ? speed.tokens_per_s.toFixed(1) : "–");
  say($("first"), speed?.first_token_s ? `${speed.first_token_s.toFixed(2)} s` : "–");
}

// What a switch is at. The level that was meant may answer already, while the one before it has answers still.
function going(status) {
  const { state: meant, serving } = status;
  if (meant === "off") return serving === "off" ? "unloading" : "being unloaded";
  return serving === meant ? "finishing the switch" : `loading ${meant}${progress(status, meant)}`;
}

// As the journal has it, once it was seen there: the daemon's other clock stands still while the machine sleeps.
function decidedAt(decision, reading) {
  state.decided = state.decisions.findLast((event) => event.at_s === decision.at_s) ?? state.decided;
  return state.decided?.at_s === decision.at_s ? secondsOf(state.decided) : reading.wall_s - (reading.at_s - decision.at_s);
}

function progress(status, level) {
  const done = of(status.loading, level);
  return done === undefined || done >= 1 ? "" : `, ${Math.round(100 * done)} %`;
}

function renderNext(status) {
  const { level, waits_for: waitsFor } = status.next;
  const soonest = status.outlooks.find((one) => one.level === level);
  const lacking = [...waitsFor];
  let share = 0;
  deadline = null;
  if (soonest) {
    const dwell = status.effective.find((one) => one.level === level)?.dwell_s ?? status.policy.dwell_s;
    if (soonest.wait_s !== null) {
      deadline = performance.now() / 1000 + soonest.wait_s;
      share = dwell > 0 ? Math.max(0, Math.min(1, 1 - soonest.wait_s / dwell)) : 1;
    } else if (soonest.earliest_s > 0) {
      lacking.push(`once there is room: in ${duration(soonest.earliest_s)} at the earliest`);
    }
    if (!lacking.length) lacking.push("nothing is lacking; it comes with the next reading");
  }
  say($("next"), level ?? "none");
  $("waited").style.width = `${100 * share}%`;
  fill($("lacking"), lacking, (sentence) => make("li", { text: sentence }));
  tick(soonest);
}

function tick(soonest) {
  const words = deadline !== null ? `in ${countdown(deadline - performance.now() / 1000)}` : soonest ? "waits for room" : "";
  say($("countdown"), words);
}

setInterval(() => { if (deadline !== null && !document.body.classList.contains("gone")) tick(); }, 1000);

function renderPictures() {
  const names = new Set([...Object.keys(state.usage), ...state.points.flatMap((point) => Object.keys(point.usage))]);
  for (const name of [...names].sort((one, two) => (two === "ram") - (one === "ram") || one.localeCompare(two, "en", { numeric: true }))) {
    if (!pictures.has(name)) {
      pictures.set(name, new Picture(name, name === "ram"));
      $("pictures").append(pictures.get(name).element);
    }
  }
  for (const picture of pictures.values()) picture.show(state);
  if ($("as-table").open) renderTable();
}

function renderTable() {
  const names = [...pictures.keys()];
  const label = (name) => (name === "ram" ? "RAM" : name);
  $("table-head").replaceChildren(make("tr", {},
    make("th", { text: "time", scope: "col" }), make("th", { text: "level", scope: "col" }),
    ...names.flatMap((name) => ["others", "ours", "in use"].map((what) => make("th", { text: `${label(name)} ${what}`, scope: "col", cls: "number" }))),
    make("th", { text: "decided", scope: "col", cls: "decided" })));
  const stepS = state.lastS / TABLE_ROWS;
  const rows = [];
  for (let end = state.now, row = 0; row < TABLE_ROWS; row++, end -= stepS) {
    const inside = (at) => at > end - stepS && at <= end;
    const point = state.points.findLast((one) => inside(one.at));
    const decided = state.decisions.filter((event) => inside(secondsOf(event))).map((event) => event.what);
    if (!point && !decided.length) continue;
    rows.push(make("tr", {}, make("th", { text: clock(point?.at ?? end), scope: "row" }), make("td", { text: point?.serving ?? "not read" }),
      ...names.flatMap((name) => {
        const part = of(point?.usage, name);
        const figures = part ? [gib(part.other_bytes), gib(part.own_bytes), percent((part.own_bytes + part.other_bytes) / part.total_bytes)] : ["–", "–", "–"];
        return figures.map((text) => make("td", { text, cls: "number" }));
      }),
      make("td", { text: decided.join(", "), cls: "decided" })));
  }
  $("table-rows").replaceChildren(...rows);
}

function renderLadder(status) {
  say($("ladder-note"), status.pinned === null ? "the machine decides" : `a person pinned ${status.pinned}`);
  // What vanishes takes the focus with it.
  if (status.pinned === null && document.activeElement === $("unpin")) $("ladder-note").focus();
  $("unpin").hidden = status.pinned === null;
  if ([...rungs.keys()].join("\n") !== state.levels.join("\n")) {
    rungs.clear();
    for (const level of state.levels) rungs.set(level, rung(level));
    // The largest on top, as one climbs.
    $("ladder").replaceChildren(...[...rungs.values()].reverse().map((one) => one.item));
  }
  const outlooks = new Map(status.outlooks.map((one) => [one.level, one]));
  for (const effective of status.effective) {
    const one = rungs.get(effective.level);
    const { level, scale_at: scaleAt } = effective;
    const limit = level === status.pinned ? effective.critical_at : effective.limit;
    const usage = of(status.projected, level);
    const takes = Object.entries(effective.takes).map(([name, size]) => `${gib(size)}${name === "ram" ? "" : ` of ${name}`}`);
    const outlook = outlooks.get(level);
    const serves = level === status.serving;
    say(one.tag, serves ? (status.state === "off" ? "being unloaded" : "answers now") : level === status.state ? "being loaded" : usage == null ? "" : usage <= limit ? "fits" : "too large now");
    one.fill.style.width = `${100 * Math.min(1, usage ?? 0)}%`;
    one.fill.classList.toggle("over", usage > limit);
    one.tick.style.left = `${100 * limit}%`;
    const earlier = limit < scaleAt ? ` (gives way ${percent(scaleAt - limit)} earlier for a while)` : "";
    say(one.usage, takes.length ? `usage there ${serves ? "is" : "would be"} ${percent(usage)}, limit ${percent(limit)}${earlier}`
      : "requests are only sent there: nothing of it is loaded here");
    const done = of(status.performance, level);
    const speed = done?.tokens_per_s ? `${done.tokens_per_s.toFixed(1)} tokens/s` : null;
    const answers = done ? `${counted(done.answers, "answer")}${done.failures ? `, ${done.failures} failed` : ""}` : null;
    say(one.figures, [takes.length ? `takes ${takes.join(", ")}` : null, speed, answers].filter(Boolean).join(" · "));
    const failed = effective.backs_off_s && of(status.failed, level) ? [`failed: ${of(status.failed, level)}`] : [];
    say(one.waits, [...(serves || level === status.state ? [] : waits(status, outlook)), ...failed].join("; "));
    const pinned = status.pinned === level;
    say(one.button, pinned ? "Unpin" : "Pin");
    one.button.setAttribute("aria-pressed", String(pinned));
    one.button.setAttribute("aria-label", `${pinned ? "Unpin" : "Pin"} ${level}`);
  }
}

// What a level waits for; a smaller one waits for nothing unless it is about to be stepped down to, and one above the
// pinned level comes with no waiting.
function waits(status, outlook) {
  if (!outlook) return [];
  const rank = (level) => state.levels.indexOf(level);
  if (status.pinned !== null && rank(outlook.level) > rank(status.pinned)) return [];
  const smaller = rank(outlook.level) < rank(status.state);
  if (smaller && !outlook.wait_s) return [];
  if (status.next.then.includes(outlook.level)) return [`after ${status.next.level}, which comes first`];
  if (!outlook.lacking.length) return ["nothing is lacking; it comes with the next reading"];
  const when = outlook.wait_s === null ? "not by waiting alone" : `in ${duration(outlook.wait_s)} if this lasts`;
  return [`${when}: ${outlook.lacking.join("; ")}`];
}

function rung(level) {
  const colour = colourOf(level, state.levels);
  const one = {
    tag: make("small"), fill: make("div", { cls: "fill" }), tick: make("div", { cls: "tick" }), usage: make("small"),
    figures: make("p", { cls: "rung-figures" }), waits: make("p", { cls: "waits" }), button: make("button", { type: "button" }),
  };
  one.item = make("li", { colour },
    make("p", { cls: "rung" }, make("span", { cls: "swatch" }), make("span", {}, level, one.tag)),
    make("div", { cls: "gauge" }, make("div", { cls: "track", "aria-hidden": "true" }, one.fill, one.tick), one.usage),
    one.figures, one.waits, one.button);
  one.button.addEventListener("click", () => pin(state.status.pinned === level ? null : level));
  return one;
}

// A level, or null to unpin.
async function pin(level) {
  say($("pin-error"), "");
  try {
    if (level === null) await ask("/pin", { method: "DELETE" });
    else await ask("/pin", { method: "PUT", body: { level } });
    await refresh(false);
  } catch (error) {
    if (error instanceof TokenNeeded) return lock();
    say($("pin-error"), error.message);
  }
}

function renderMachine(status) {
  const { reading, policy } = status;
  const gpus = new Map((reading?.gpus ?? []).map((gpu) => [`gpu${gpu.index}`, gpu]));
  const names = [...new Set(["ram", ...gpus.keys()])];
  $("resources").replaceChildren(...names.map((name) => {
    const gpu = gpus.get(name);
    const part = of(state.usage, name);
    if (!part) return make("li", { cls: "resource" }, make("p", {}, make("span", { text: name === "ram" ? "RAM" : name }), make("span", { text: "not read now" })));
    const share = (size) => `${100 * Math.min(1, size / part.total_bytes)}%`;
    const other = make("div", { cls: "fill other" }), own = make("div", { cls: "fill own", colour: colourOf(status.serving, state.levels) });
    other.style.width = share(part.other_bytes);
    own.style.left = share(part.other_bytes);
    own.style.width = share(Math.min(part.own_bytes, part.total_bytes - part.other_bytes));
    const limits = name === "ram" ? [policy.scale_at, policy.critical_at] : [policy.vram_scale_at ?? policy.scale_at, policy.vram_critical_at ?? policy.critical_at];
    const ticks = limits.map((limit, place) => {
      const tick = make("div", { cls: place ? "tick critical-tick" : "tick" });
      tick.style.left = `${100 * limit}%`;
      return tick;
    });
    const more = gpu ? [
      gpu.utilisation_ratio !== null ? `${Math.round(100 * gpu.utilisation_ratio)} % busy` : null,
      gpu.temperature_c !== null ? `${Math.round(gpu.temperature_c)} °C` : null,
      gpu.throttled ? "slowed down for heat" : null,
    ].filter(Boolean).join(", ") : "";
    return make("li", { cls: "resource" },
      make("p", {}, make("span", { text: gpu ? `${name}${gpu.name ? `, ${gpu.name}` : ""}` : "RAM" }),
        make("span", { text: `${percent((part.own_bytes + part.other_bytes) / part.total_bytes)} of ${gib(part.total_bytes)}` })),
      make("div", { cls: "track", "aria-hidden": "true" }, other, own, ...ticks),
      make("small", { text: `${gib(part.other_bytes)} others, ${gib(part.own_bytes)} ours${more ? `; ${more}` : ""}` }));
  }));
  const facts = [];
  const { cpu, swap, pressure, power, thermal } = reading ?? {};
  if (cpu && cpu.busy_ratio !== null) facts.push(["processors", `${Math.round(100 * cpu.busy_ratio)} % of ${cpu.cores} cores`]);
  if (swap?.total_bytes) facts.push(["swap", `${gib(swap.used_bytes)} of ${gib(swap.total_bytes)}`]);
  if (pressure?.memory) facts.push(["stalled on memory", percent(pressure.memory.some_avg10_ratio)]);
  if (power && power.plugged_in !== null) facts.push(["power", power.plugged_in ? "mains" : `battery${power.battery_ratio !== null ? `, ${Math.round(100 * power.battery_ratio)} %` : ""}`]);
  if (thermal?.throttled) facts.push(["heat", "slowed down"]);
  const trend = of(status.trends, "ram");
  if (trend) facts.push(["others' trend", `${trend.slope_bytes_per_s >= 0 ? "+" : "−"}${gib(Math.abs(trend.slope_bytes_per_s) * 60)} a minute`]);
  fill($("facts"), facts, ([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
}

function renderEvents() {
  const shown = state.events.filter((event) => LISTED.has(event.event)).slice(-MOST_EVENTS).reverse();
  if (!shown.length) return fill($("events"), ["nothing"], () => make("li", { cls: "nothing", text: "nothing in this time" }));
  fill($("events"), shown, (event) => {
    const { at, what, why } = event;
    return make("li", {}, make("time", { text: clock(secondsOf(event)), datetime: at }), make("span", {}, make("b", { text: what }), why ? ` ${why}` : ""));
  });
}

async function loadAdvice() {
  try {
    const advice = await ask("/advice");
    const lines = [...(advice.coming && advice.suggestions.length ? [advice.coming] : []), ...advice.unread];
    $("advice").replaceChildren(
      ...lines.map((text) => make("p", { text, cls: "nothing" })),
      advice.suggestions.length
        ? make("ol", { cls: "advice-list" }, ...advice.suggestions.map((one) => make("li", { text: one.text })))
        : make("p", { cls: "nothing", text: `Nothing to suggest: ${advice.reason}.` }),
      ...(advice.suggestions.length ? [make("p", { cls: "quiet", text: "scaler closes no program itself; it climbs by itself once the room has stayed." })] : []));
  } catch (error) {
    if (!(error instanceof TokenNeeded)) $("advice").replaceChildren(make("p", { cls: "nothing", text: error.message }));
  }
}

async function loadDays() {
  let told;
  try {
    told = (await ask("/history/days?days=14")).days;
  } catch (error) {
    if (!(error instanceof TokenNeeded)) $("key").replaceChildren(make("span", { text: error.message }));
    return;
  }
  const first = told.findIndex((day) => day.switches || day.failed || day.died || Object.values(day.levels_s).some((length) => length > 0));
  const days = first < 0 ? told.slice(-1) : told.slice(first);
  const names = [...new Set(["off", ...state.levels, ...days.flatMap((day) => Object.keys(day.levels_s))])].reverse();
  fill($("days"), days.reverse(), (day) => {
    const parts = names.map((name) => [name, of(day.levels_s, name) ?? 0]).filter(([, length]) => length > 0);
    const words = parts.map(([name, length]) => `${name} ${duration(length)}`).join(", ");
    const date = dayOf(new Date(`${day.date}T12:00:00`));
    const stack = make("div", { cls: "stack", title: words, "aria-hidden": "true" }, ...parts.map(([name, length]) => {
      const part = make("span", { colour: colourOf(name, state.levels) });
      part.style.width = `${(100 * length) / 86400}%`;
      return part;
    }));
    return make("tr", {}, make("th", { text: date, scope: "row" }), make("td", {}, stack, make("span", { cls: "unseen", text: words || "nothing known" })),
      ...[day.downgrades, day.upgrades, day.failed + day.died].map((count) => make("td", { text: String(count), cls: "number" })));
  });
  fill($("key"), names, (name) => make("span", {}, make("span", { cls: "swatch", colour: colourOf(name, state.levels) }), name));
}

// Replace an element's content when what it shows has changed, and not before: it may be selected, or read aloud.
function fill(element, items, one) {
  const key = JSON.stringify(items);
  if (element.shows === key) return;
  element.shows = key;
  element.replaceChildren(...items.map(one));
}

// ------------------------------------------------------------------ the daemon's going and coming

const stream = new Stream({
  take,
  locked: lock,
  async begin() {
    clearTimeout(pending);
    while (refreshing) await new Promise((resolve) => setTimeout(resolve, 20));
    await loadHistory();
    await loadStatus();
    document.body.classList.remove("gone");
    $("gone").hidden = true;
    $("ask").hidden = true;
    link("live", "live");
    render();
    await Promise.all([loadAdvice(), loadDays()]);
  },
  gone(left) {
    document.body.classList.add("gone");
    link("gone", "gone");
    const since = state.status?.reading?.wall_s;
    say($("gone-words"), `The daemon does not answer.${since ? ` What is shown is of ${moment(since, now())}.` : ""}`);
    say($("gone-left"), `Trying again in ${left} s.`);
    $("gone").hidden = false;
  },
});

function link(how, words) {
  $("link").dataset.state = how;
  say($("link-words"), words);
}

function lock() {
  forgetToken();
  $("board").hidden = true;
  $("gone").hidden = true;
  $("ask").hidden = false;
  link("waiting", "locked");
  $("token").focus();
}

$("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  say($("ask-error"), "");
  try {
    await ask("/healthz", { token });
  } catch (error) {
    say($("ask-error"), error instanceof TokenNeeded ? "That is not the token." : error.message);
    return;
  }
  $("token").value = "";
  keepToken(token);
  stream.follow();
});

$("again").addEventListener("click", () => stream.tryNow());
$("look").addEventListener("click", loadAdvice);
$("unpin").addEventListener("click", () => pin(null));
$("as-table").addEventListener("toggle", renderTable);
for (const button of document.querySelectorAll("[data-last]")) {
  button.addEventListener("click", () => {
    state.lastS = Number(button.dataset.last);
    state.points = [];
    for (const one of document.querySelectorAll("[data-last]")) one.setAttribute("aria-pressed", String(one === button));
    say($("hour-title"), button.dataset.last === "3600" ? "The last hour" : `The last ${button.textContent.replace(" h", "")} hours`);
    refresh(true);
  });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden && state.status) refresh(true); });
new ResizeObserver(() => { if (state.status) renderPictures(); }).observe($("pictures"));

stream.follow();
