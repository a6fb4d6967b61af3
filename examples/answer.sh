#!/usr/bin/env bash
# Parley from a shell script: ./examples/answer.sh PROMPT [SESSION]
# API_KEY holds a key; PARLEY_URL the address when it is not http://127.0.0.1:5000. Needs curl and python3 (for JSON).
set -euo pipefail
: "${API_KEY:?set API_KEY to a key, for example from: .venv/bin/python main.py keys create --name script}"
url=${PARLEY_URL:-http://127.0.0.1:5000}
body=$(python3 - "$@" <<'PYTHON'
import json, sys
prompt, session = sys.argv[1], (sys.argv[2:] or [None])[0]
if session and session.lstrip("-").isdigit():
    session = int(session)
print(json.dumps({"prompt": prompt, "session_id": session}))
PYTHON
)
curl --silent --show-error --fail-with-body "$url/answer" \
    -H "Authorization: $API_KEY" -H "Content-Type: application/json" --data-binary "$body" |
    python3 -c 'import json, sys; reply = json.load(sys.stdin); print(reply.get("result", reply["message"] if "message" in reply else reply))'
