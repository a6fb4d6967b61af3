"""Chat platforms: somebody writes to the bot in Slack, Discord or MS Teams, and a personality answers there (S4.11)."""
