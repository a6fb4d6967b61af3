#!/usr/bin/env bash
# Gets a model into this folder, with the yaml (and the tmpl) that make it a profile. A running server takes it in.
#
#   models/download_model.sh                        the two below
#   models/download_model.sh mistral                Mistral-7B-Instruct-v0.2-GGUF, Q4_0: 4.1 GB, to talk to
#   models/download_model.sh embeddings             nomic-embed-text-v1.5-GGUF, Q5_K_M: 0.1 GB, for embeddings
#   models/download_model.sh OWNER/REPO FILE [NAME] any GGUF model that has a chat template of its own
#
# What was cut goes on with the same command; a yaml or tmpl that is there already is left as it is.
# MODELS_DIR: another folder than this one. HF_ENDPOINT, HF_TOKEN: another hub, and who you are there.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
export MODELS_DIR=${MODELS_DIR:-$HERE}
python=${PYTHON:-$ROOT/.venv/bin/python}

die() { printf 'download_model: %s\n' "$*" >&2; exit 1; }

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; }

pull() { "$python" "$ROOT/main.py" models pull "$1" "$2"; }  # repository file

# Writes what comes in as a file of the folder, whole or not at all; never over one that is there.
keep() {  # file
    local path=$MODELS_DIR/$1
    if [ -e "$path" ]; then cat >/dev/null; printf '%s is there already: left as it is\n' "$path"; return; fi
    cat >"$MODELS_DIR/.$1.new"
    mv "$MODELS_DIR/.$1.new" "$path"
    printf 'wrote %s\n' "$path"
}

mistral() {
    pull TheBloke/Mistral-7B-Instruct-v0.2-GGUF mistral-7b-instruct-v0.2.Q4_0.gguf
    keep mistral-instruct.tmpl <<'TMPL'
{{- if eq .RoleName "assistant"}} {{.Content}}</s>
{{- else if eq .RoleName "user"}}[INST] {{.Content}} [/INST]
{{- else}}{{.Content}}{{end -}}
TMPL
    keep Mistral-7B-Instruct-v0.2-GGUF.yaml <<'YAML'
name: Mistral-7B-Instruct-v0.2-GGUF
description: Mistral 7B Instruct v0.2, to talk to
context_size: 4096
parameters:
  model: mistral-7b-instruct-v0.2.Q4_0.gguf
  temperature: 0.2
  top_k: 40
  top_p: 0.95
stopwords: ["</s>", "[INST]"]
template:
  chat_message: mistral-instruct
  join_chat_messages_by_character: ""
YAML
}

embeddings() {
    pull nomic-ai/nomic-embed-text-v1.5-GGUF nomic-embed-text-v1.5.Q5_K_M.gguf
    keep nomic-embed-text-v1.5-GGUF.yaml <<'YAML'
name: nomic-embed-text-v1.5-GGUF
description: Nomic Embed Text v1.5, for embeddings
context_size: 2048
embeddings: true
parameters:
  model: nomic-embed-text-v1.5.Q5_K_M.gguf
YAML
}

other() {  # repository file [name]
    local name=${3:-${1##*/}}
    case $name in *[!A-Za-z0-9._-]* | .* | '') die "$name is no plain name: use letters, digits, '-', '_' and '.'" ;; esac
    case $2 in */* | *[!A-Za-z0-9._-]*) die "$2 is no plain name of a .gguf file" ;; *.gguf) ;; *) die "$2 is no .gguf file" ;; esac
    pull "$1" "$2"
    keep "$name.yaml" <<YAML
name: "$name"
context_size: 4096
parameters:
  model: "$2"
template:
  use_tokenizer_template: true
YAML
}

[ -x "$python" ] || command -v "$python" >/dev/null || die "run ./setup.sh first; it makes $python"
case ${1:-} in
    '') mistral; embeddings ;;
    mistral | Mistral-7B-Instruct-v0.2-GGUF) mistral ;;
    embeddings | nomic-embed-text-v1.5-GGUF) embeddings ;;
    multi-qa-mpnet-base-dot-v1 | mpnet) die "llama.cpp does not run MPNet models; for embeddings take: $0 embeddings" ;;
    -h | --help) usage ;;
    */*) [ $# -ge 2 ] || die "name a file of $1 too: $0 $1 FILE [NAME]"; other "$@" ;;
    *) die "there is no model $1 here; $0 --help lists what there is" ;;
esac
