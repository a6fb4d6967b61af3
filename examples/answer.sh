#!/usr/bin/env bash
# Parley from a shell script: ./examples/answer.sh PROMPT [SESSION]
# API_KEY holds a key; PARLEY_URL the address when it is not http://127.0.0.1:5000. Needs curl and python3 (for JSON).
set -euo pipefail
: "${1:?usage: ./examples/answer.sh PROMPT [SESSION]}"
: "${API_KEY:?set API_KEY to a key, for example from: .venv/bin/python main.py keys create --name script}"
url=${PARLEY_URL:-http://127.0.0.1:5000}
body=$(python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1], "session_id": (sys.argv[2:] or [None])[0]}))' "$@")

# The header comes from a pipe: arguments can be read by everybody on the machine.
status=0
reply=$(curl --silent --show-error --fail-with-body "$url/answer" --data-binary "$body" \
    -H "Content-Type: application/json" -H @<(printf 'Authorization: %s\n' "$API_KEY")) || status=$?
if [ -n "$reply" ]; then
    python3 -c 'import json, sys; reply = json.load(sys.stdin); print(reply.get("result", reply.get("message")))' <<<"$reply"
fi
exit "$status"
