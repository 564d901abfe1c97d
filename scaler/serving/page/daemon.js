// The daemon, asked and followed. Owns the token and the one stream of events; knows nothing of what is drawn.
// EventSource cannot send a token, so the stream is read with fetch.

const KEPT_AS = "scaler-token";
const SILENT_MS = 45000; // the daemon says a word every 15 s
const PAUSES_S = [1, 2, 4, 8, 10];

export class TokenNeeded extends Error {}
export class Refused extends Error {} // with the daemon's own words

export function keepToken(token) {
  sessionStorage.setItem(KEPT_AS, token);
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT_AS);
}

function headers(token = sessionStorage.getItem(KEPT_AS)) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export async function ask(path, { method = "GET", body, token } = {}) {
  const sent = { ...headers(token), ...(body ? { "Content-Type": "application/json" } : {}) };
  const answer = await fetch(path, {
    method, headers: sent, body: body && JSON.stringify(body), cache: "no-store", signal: AbortSignal.timeout(20000),
  });
  if (answer.status === 401) throw new TokenNeeded();
  const told = await answer.json();
  if (!answer.ok) throw new Refused(told.error?.message ?? `the daemon answers ${answer.status}`);
  return told;
}

// Follows for ever. `begin` runs on each connection before its events are told; `take` gets (name, data) of each;
// `gone` gets the seconds until the next try, each second.
export class Stream {
  constructor({ begin, take, gone, locked }) {
    Object.assign(this, { begin, take, gone, locked });
    this.wake = () => {};
  }

  async follow() {
    for (let tries = 0; ; tries++) {
      try {
        await this.once(() => { tries = 0; });
      } catch (error) {
        if (error instanceof TokenNeeded) return this.locked();
      }
      for (let left = PAUSES_S[Math.min(tries, PAUSES_S.length - 1)]; left > 0; left--) {
        this.gone(left);
        if (await this.pause()) break;
      }
    }
  }

  tryNow() {
    this.wake();
  }

  // A second, or less when the person asks; says whether they did.
  pause() {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), 1000);
      this.wake = () => { clearTimeout(timer); resolve(true); };
    });
  }

  async once(connected) {
    const stop = new AbortController();
    let timer = setTimeout(() => stop.abort(), SILENT_MS);
    try {
      const answer = await fetch("/events?readings=1", { headers: headers(), cache: "no-store", signal: stop.signal });
      if (answer.status === 401) throw new TokenNeeded();
      if (!answer.ok) throw new Error(`the daemon answers ${answer.status}`);
      await this.begin();
      connected();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => stop.abort(), SILENT_MS);
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) this.tell(part);
      }
    } finally {
      clearTimeout(timer);
      stop.abort();
    }
  }

  tell(part) {
    // By the line's end that the daemon writes: a pattern's "." ends at U+2028 too, which a program's name may have.
    const told = (field) => part.split("\n").find((one) => one.startsWith(field))?.slice(field.length);
    const [name, data] = [told("event: "), told("data: ")];
    if (name && data) this.take(name, JSON.parse(data));
  }
}
