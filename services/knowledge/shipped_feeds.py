"""The feeds that a new data folder gets, in `feeds.json`: from then on a person's. They are the seed's (S4.14)."""

from __future__ import annotations

from typing import Any

_CANADA = "https://api.io.canada.ca/io-server/gc/news/en/v2?"
_LATEST = "sort=publishedDate&orderBy=desc&pick=5&format=atom&atomtitle="
_WHEN = ["today", "this week", "tomorrow", "now", "later", "forecast"]


def _news(word: str | None, source: str, url: str) -> dict[str, Any]:
    return {"url": url, "when": [["news"], [word]] if word else [["news"]],
            "introduction": f"The latest {source} is:", "status": "Checking the news..."}


# The first one that matches is the one that the seed takes.
SHIPPED: dict[str, dict[str, Any]] = {
    "Ottawa Citizen": _news("ottawa citizen", "news from the Ottawa Citizen", "https://ottawacitizen.com/feed"),
    "CBC Ottawa": _news("ottawa", "news from the CBC for Ottawa", "https://www.cbc.ca/webfeed/rss/rss-canada-ottawa"),
    "Financial Post": _news("financ", "news from the Financial Post", "https://financialpost.com/feed"),
    "CBC Sports": _news("sport", "sports news from the CBC", "https://www.cbc.ca/webfeed/rss/rss-sports"),
    "Kotaku": _news("gaming", "news from Kotaku", "https://kotaku.com/rss"),
    "CBC Technology": _news("tech", "technology news from the CBC", "https://www.cbc.ca/webfeed/rss/rss-technology"),
    "Canada Health": _news("health", "health news from the Government of Canada",
                           f"{_CANADA}topic=health&{_LATEST}Health"),
    "CBC Politics": _news("politi", "political news from the CBC", "https://www.cbc.ca/webfeed/rss/rss-politics"),
    "Government of Canada": _news("government", "news from the Government of Canada",
                                  f"{_CANADA}{_LATEST}National%20News"),
    "CBC Canada": _news("canad", "news from the CBC about Canada", "https://www.cbc.ca/webfeed/rss/rss-canada"),
    "CBC": _news(None, "news from the CBC", "https://www.cbc.ca/webfeed/rss/rss-topstories"),
    "Busrides": {
        "url": "https://busrides.ghost.io/rss/", "when": [["busrides"]],
        "introduction": "Busrides is a series of articles from the Canada School of Public Service, and not about "
                        "public transit. Its newest articles are:",
        "status": "Checking the latest microlearning..."},
    "CSPS": {
        "url": "https://www.csps-efpc.gc.ca/stayconnected/csps-rss-eng.xml",
        "when": [["csps", "school"], ["cours", "learn"]],
        "introduction": "The latest learning products from the Canada School of Public Service are:",
        "status": "Checking the catalogue..."},
    "Open Canada": {
        "url": "https://open.canada.ca/data/en/feeds/dataset.atom", "when": [["open", "new"], ["dataset"]],
        "introduction": "The latest open datasets from the Government of Canada are:",
        "status": "Checking the open data portal..."},
    "Weather in Ottawa": {
        "url": "https://weather.gc.ca/rss/city/on-118_e.xml",
        "when": [["weather", "rain", "snow", "temperature"], _WHEN],
        "introduction": "The weather forecast for the Ottawa area is:", "status": "Checking the forecast..."},
    "La Presse": {
        "url": "https://www.lapresse.ca/actualites/rss", "when": [["nouvelles"]],
        "introduction": "Les dernières nouvelles de La Presse sont :", "status": "Je rassemble les actualités..."},
}
