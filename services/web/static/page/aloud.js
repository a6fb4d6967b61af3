// What who hears the page is told of an answer while it streams: whole sentences, not tokens.

const END = /[.!?:…。！？]["')\]]*\s|\n/g;
const KEPT = 20;            // sentences that stay for a screen reader to go back to

export class Aloud {
    constructor(region) {
        this.region = region;
    }

    begin() {
        this.region.replaceChildren();
        this.at = 0;
    }

    /** `text`: the whole answer so far; at its end what remains is said too. */
    hear(text, ended = false) {
        let until = this.at;
        if (ended) until = text.length;
        else for (const found of text.slice(this.at).matchAll(END)) until = this.at + found.index + found[0].length;
        const words = text.slice(this.at, until).replace(/```\w*|[*_#`>|]/g, "").trim();
        this.at = until;
        if (!words) return;
        const line = document.createElement("p");
        line.textContent = words;
        this.region.append(line);
        while (this.region.children.length > KEPT) this.region.firstChild.remove();
    }
}
