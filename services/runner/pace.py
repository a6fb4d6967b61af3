"""How much prompt a step may carry beside running answers, and how fast the runner is: learnt from finished steps."""

from __future__ import annotations

from math import exp

STRETCH = 2.5       # a step beside running answers may take this many times what it takes without prompt tokens
BLEND = 0.2         # weight of the newest measurement
UNKNOWN_ROOM = 32   # prompt tokens beside running answers before anything was measured
LEAST_ROOM = 4      # a prompt always gets on
REMEASURE = 16      # steps with prompt tokens in a row, after which one goes without: what is quiet changes with time
WINDOW = 5.0        # seconds of work after which a step counts little for `tokens_per_second`


class Pace:
    """Measurements of one runner. All durations are seconds of whole steps (decode, sampling, text)."""

    def __init__(self, budget: int) -> None:
        self.budget = budget                    # tokens that one batch may carry
        self._quiet: dict[int, float] = {}      # running answers in a step -> seconds of a step with nothing else
        self._mixed = 0                         # steps with prompt tokens since the last without
        self._per_prompt_token = 0.0            # seconds that one more prompt token adds to a step
        self._request = 0.0                     # seconds from slot to end
        self._seconds = self._sampled = 0.0     # of recent steps, older ones fading

    def room(self, decoding: int) -> int:
        """Prompt tokens that the next step may carry beside `decoding` running answers."""
        free = self.budget - decoding
        if not decoding:
            return free
        if self._mixed >= REMEASURE:
            return 0
        quiet = self._quiet_for(decoding)
        if not quiet or not self._per_prompt_token:
            return min(free, UNKNOWN_ROOM)
        return min(free, max(LEAST_ROOM, int((STRETCH - 1) * quiet / self._per_prompt_token)))

    def step_done(self, seconds: float, decoding: int, prompt_tokens: int, sampled: int) -> None:
        fade = exp(-seconds / WINDOW)
        self._seconds, self._sampled = self._seconds * fade + seconds, self._sampled * fade + sampled
        self._mixed = self._mixed + 1 if prompt_tokens else 0
        if decoding and not prompt_tokens:
            self._quiet[decoding] = _blend(self._quiet.get(decoding), seconds)
        elif prompt_tokens:
            extra = max(seconds - self._quiet_for(decoding), seconds * 0.1) if decoding else seconds
            self._per_prompt_token = _blend(self._per_prompt_token or None, extra / prompt_tokens)

    def request_done(self, seconds: float) -> None:
        self._request = _blend(self._request or None, seconds)

    def retry_after(self, waiting: int, slots: int) -> float:
        """Seconds until a place in a queue of `waiting` may be free: one request's end, 1 to 60."""
        return min(60.0, max(1.0, self._request * max(1, waiting) / slots))

    @property
    def tokens_per_second(self) -> float:
        return self._sampled / self._seconds if self._seconds else 0.0

    def _quiet_for(self, decoding: int) -> float:
        """Seconds of a step with `decoding` answers alone; from the nearest smaller number measured, 0 when none."""
        known = [count for count in self._quiet if count <= decoding]
        return self._quiet[max(known)] if known else 0.0


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + BLEND * (new - old)
