#!/usr/bin/env bash
# Parley from a shell script: ./examples/answer.sh PROMPT [SESSION]
# API_KEY holds a key; PARLEY_URL the address when it is not http://127.0.0.1:5000. Needs curl and python3 (for JSON).
set -euo pipefail
fail() { echo "$2" >&2; exit "$1"; }
[ -n "${1:-}" ] || fail 2 "usage: ./examples/answer.sh PROMPT [SESSION]"
[ -n "${API_KEY:-}" ] || fail 2 "set API_KEY to a key, for example from: .venv/bin/python main.py keys create --name script"
url=${PARLEY_URL:-http://127.0.0.1:5000}
body=$(python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1], "session_id": (sys.argv[2:] or [None])[0]}))' "$@")

# The header comes from a pipe: arguments can be read by everybody on the machine.
status=0
reply=$(curl --silent --fail-with-body "$url/answer" --data-binary "$body" \
    -H "Content-Type: application/json" -H @<(printf 'Authorization: %s\n' "$API_KEY")) || status=$?
case $status in
    0 | 22) ;;
    5 | 6 | 7) fail "$status" "no server answers at $url; set PARLEY_URL" ;;
    *) fail "$status" "the request to $url failed: see EXIT CODES in \`man curl\`, $status" ;;
esac
[ "$status" = 0 ] || exec >&2
python3 -c '
import json, sys
try:
    reply = json.loads(sys.argv[1])
    print(reply["result"] if "result" in reply else reply["message"])
except (ValueError, KeyError, TypeError):
    sys.exit("what answers at " + sys.argv[2] + " is no Parley server")
' "$reply" "$url"
exit "$status"
