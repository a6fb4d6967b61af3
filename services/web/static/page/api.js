// The server, as its key may use it. The key is kept for this tab alone.

const KEPT = "parley-key";
export const AWAY = "the server cannot be reached just now";
let gone = () => {};

export const key = () => sessionStorage.getItem(KEPT);
export const keepKey = (value) => sessionStorage.setItem(KEPT, value);
export const forgetKey = () => sessionStorage.clear();
/** What to do when the key is no longer taken. */
export const onRefused = (act) => { gone = act; };

export class ApiError extends Error {
    constructor(status, error) {
        super([error.message, error.hint].filter(Boolean).join(": "));
        this.status = status;
        this.code = error.code;
        this.param = error.param;
    }
}

async function send(method, path, body, signal, more) {
    const mine = key(), headers = { Authorization: `Bearer ${mine}`, ...more };
    if (body !== undefined && !(body instanceof FormData)) headers["Content-Type"] = "application/json";
    const response = await fetch(path, {
        method, headers, signal, cache: "no-store",
        body: body === undefined || body instanceof FormData ? body : JSON.stringify(body),
    }).catch((error) => {
        throw error instanceof TypeError ? new TypeError(AWAY, { cause: error }) : error;
    });
    if (response.ok) return response;
    let error = { message: `the server answers with HTTP ${response.status}`, code: "http" };
    try {
        error = (await response.json()).error ?? error;
    } catch { /* not JSON: what the status says is all there is */ }
    if (response.status === 401 && mine && mine === key()) {        // not that of somebody who has left meanwhile
        forgetKey();
        gone(new ApiError(401, error).message);
    }
    const wait = response.headers.get("Retry-After");
    throw new ApiError(response.status, wait ? { ...error, message: `${error.message} (try again in ${wait} s)` } : error);
}

export async function call(method, path, body, signal, headers) {
    const response = await send(method, path, body, signal, headers);
    return response.status === 204 ? null : response.json();
}

export const get = (path) => call("GET", path);
/** The names and values of an object of texts in the order of the text: where names are numbers a parser changes it. */
export const getPairs = async (path) => [...(await getText(path)).matchAll(/("(?:[^"\\]|\\.)*")\s*:\s*("(?:[^"\\]|\\.)*")/g)]
    .map(([, name, value]) => [JSON.parse(name), JSON.parse(value)]);
export const getText = async (path) => (await send("GET", path)).text();
export const post = (path, body = {}) => call("POST", path, body);

/** The events of a streamed answer. */
export async function* stream(path, body, signal) {
    const response = await send("POST", path, { ...body, stream: true }, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        held += value;
        const blocks = held.split("\n\n");
        held = blocks.pop();
        for (const block of blocks) {
            if (!block.startsWith("data: ")) continue;
            const event = JSON.parse(block.slice(6));
            if (event.error) throw new ApiError(200, event.error);
            yield event;
        }
    }
}
