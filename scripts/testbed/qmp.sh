# shellcheck shell=bash
# Talking to QEMU's monitor and to workers in guests, with the helper chat.c.
: "${testbed_lib:?source testbed.sh}"

# tb_chat ARGS...: the helper, compiled on first use.
tb_chat() {
    local bin=$TESTBED_DIR/bin/chat
    [ -x "$bin" ] || gcc -O2 -o "$bin" "$testbed_lib/chat.c" || return 1
    "$bin" "$@"
}

# qmp SOCKET COMMAND [JSON_ARGUMENTS]: runs a monitor command and prints what it returns.
qmp() {
    local socket=$1 request answer
    request=$(jq -nc --arg c "$2" --argjson a "${3:-{\}}" '{execute: $c, arguments: $a}')
    answer=$(tb_chat "$socket" "${QMP_TIMEOUT_MS:-10000}" '^\{"(return|error)"' '{"execute":"qmp_capabilities"}' "$request") ||
        { tb_fail "monitor $socket: no answer to $2"; return 1; }
    answer=$(grep -E '^\{"(return|error)"' <<<"$answer" | tail -n 1)
    if [[ $answer == '{"error"'* ]]; then
        tb_fail "monitor: $2: $(jq -r .error.desc <<<"$answer")"
        return 1
    fi
    jq -c .return <<<"$answer"
}
