"""The platforms that there are."""

from __future__ import annotations

from services.web.bindings import discord, slack, teams
from services.web.bindings.config import Binding
from services.web.routes import Route

ROUTES = (
    Route("/bindings/slack/<string:name>", slack.SlackBot, "bindings"),
    Route("/bindings/discord/<string:name>", discord.DiscordBot, "bindings"),
    Route("/bindings/teams/<string:name>", teams.TeamsBot, "bindings"),
)
KINDS: dict[str, type[Binding]] = {
    "slack": slack.SlackBinding, "discord": discord.DiscordBinding, "teams": teams.TeamsBinding}
