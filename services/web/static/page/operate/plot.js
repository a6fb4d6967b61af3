// Small plots: the last few minutes of one figure.
import { el } from "./dom.js";

const WIDTH = 240, HEIGHT = 60, POINTS = 150;
const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
}

/** `add(value)` draws one more; null leaves a gap. `unit` follows the value, `digits` are those after the point. */
export function plot(title, unit = "", digits = 0) {
    const values = [];
    const line = shape("path", { class: "line", fill: "none", "stroke-linecap": "round" });
    const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" });
    const now = el("strong", {}, "–");
    const most = el("small", { className: "hint" });
    const text = (value) => `${value.toLocaleString("en", { maximumFractionDigits: digits })}${unit}`;
    svg.append(line);
    const add = (value) => {
        values.push(value);
        if (values.length > POINTS) values.shift();
        const known = values.filter((one) => one !== null);
        const top = Math.max(...known, 0);
        const last = known.at(-1);
        now.textContent = last === undefined ? "–" : text(last);
        most.textContent = known.length ? `most ${text(top)}` : "nothing yet";
        svg.setAttribute("aria-label", `${title}: now ${now.textContent}, ${most.textContent} of ${values.length} looks`);
        line.setAttribute("d", path(values, top || 1));
    };
    return { add, node: el("figure", { className: "plot" }, el("figcaption", {}, title), now, svg, most) };
}

function path(values, top) {
    let gap = true;
    return values.map((value, at) => {
        if (value === null) {
            gap = true;
            return "";
        }
        const x = WIDTH - (values.length - 1 - at) * (WIDTH / (POINTS - 1));
        const y = HEIGHT - 2 - (value / top) * (HEIGHT - 4);
        const step = `${gap ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}${gap ? "h0" : ""}`;    // a dot, if it is alone
        gap = false;
        return step;
    }).join("");
}
