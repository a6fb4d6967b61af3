"""OpenAI's Responses API over the one pipeline and its sessions."""
