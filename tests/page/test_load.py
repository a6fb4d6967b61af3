"""The load as figures tell it that are not those of one healthy server since its start."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.conftest import MASTER
from tests.page.test_operate import go

FIGURES = """# HELP parley_requests_total Requests for text
{requests}
Skynet_Summaries_redis_connection_status 0.0
Skynet_Summaries_summary_queue_size 0.0
Skynet_Summaries_summary_current_tasks_by_processor{{processor="LOCAL"}} 2.0
parley_runner_running{{model="a.gguf"}} 1.0
parley_runner_running{{model="b \\"}} 7.gguf"}} 2.0
parley_runner_slots{{model="a.gguf"}} 4.0
parley_runner_slots{{model="b \\"}} 7.gguf"}} 4.0
"""


def test_what_is_not_known_is_not_drawn_and_long_lists_are_cut(tab):
    looks = []

    def tell(route):
        count = 1000 if not looks else 0            # the server began anew
        looks.append(count)
        route.fulfill(body=FIGURES.format(requests="\n".join(
            f'parley_requests_total{{profile="p{n}",outcome="stop"}} {count + n}' for n in range(60))))

    tab.page.route("**/metrics", tell)
    tab.key = MASTER
    tab.sign_in()
    place = go(tab, "Load")
    expect(place).to_contain_text("Slots: 3 of 8 busy. Jobs that run: 2.")
    expect(place).to_contain_text("The 50 largest of 60.")
    expect(place.locator("tbody tr")).to_have_count(50)
    expect(place.locator("tbody tr").first).to_contain_text(re.compile("p59.*1,059"))
    for title in ("Requests for text", "Jobs that wait"):
        expect(place.get_by_role("img", name=f"{title}: now –, nothing yet of 2 looks")).to_be_visible()
    expect(place.get_by_role("img", name="Requests for text: now 0/s, most 0/s of 3 looks")).to_be_visible()
    assert not tab.wrong
