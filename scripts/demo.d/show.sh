# shellcheck shell=bash
# How the demo talks: headlines, commands with their output, claims that are checked.

claims=0
broken=()
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' plain=''
fi

# headline TEXT: a new part begins.
headline() { printf '\n%s== %s ==%s\n' "$bold" "$*" "$plain"; }

# say TEXT...: a paragraph of plain words; an empty line first if the first TEXT is empty.
say() {
    if [ -z "$1" ]; then
        echo
        shift
    fi
    printf '%s\n' "$*" | fold -s -w 96 | sed 's/ *$//'
}

# show PROMPT WORDS -- COMMAND...: prints the command as an operator would type it, then what
# it prints, cut to the width of the screen. Returns what COMMAND returns.
show() {
    local prompt=$1 words=() width=100000
    shift
    while [ "$1" != -- ]; do
        words+=("$1")
        shift
    done
    shift
    [ ! -t 1 ] || width=$(($(tput cols 2>/dev/null || echo 100) - 4))
    printf '\n  %s%s%s %s\n' "$dim" "$prompt" "$plain" "${words[*]}"
    "$@" 2>&1 | cut -c "-$width" | sed 's/^/    /'
    return "${PIPESTATUS[0]}"
}

# on HOST ARGS...: moatctl on a host. admin ARGS...: moatctl beside the database.
on() { show "$1#" moatctl "${@:2}" -- ctl "$@"; }
admin() { show 'admin$' moatctl "$@" -- moat_admin "$@"; }

# claim TEXT COMMAND...: ✓ if COMMAND succeeds, else ✗ with what it said, and the demo will fail.
claim() {
    local text=$1
    shift
    claims=$((claims + 1))
    if "$@" >"$demo_tmp/claim" 2>&1; then
        printf '  %s✓%s %s\n' "$green" "$plain" "$text"
    else
        printf '  %s✗ %s%s\n' "$red" "$text" "$plain"
        tail -n 4 "$demo_tmp/claim" | sed 's/^/      | /'
        broken+=("$text")
    fi
}

# claim_equal TEXT GOT WANTED, claim_most TEXT GOT LIMIT, claim_least: with what was seen.
claim_equal() { claim "$1: $2$([ "$2" = "$3" ] || printf ' (expected %s)' "$3")" [ "$2" = "$3" ]; }
claim_most() { claim "$1: $2$([ "$2" -le "$3" ] 2>/dev/null || printf ' (at most %s expected)' "$3")" [ "$2" -le "$3" ]; }
claim_least() { claim "$1: $2$([ "$2" -ge "$3" ] 2>/dev/null || printf ' (at least %s expected)' "$3")" [ "$2" -ge "$3" ]; }

# claim_soon SECONDS TEXT COMMAND...: like claim, but COMMAND has some time.
claim_soon() {
    local seconds=$1 text=$2
    shift 2
    claim "$text" wait_for "$seconds" "$text" "$@"
}

# Conditions: not COMMAND...; says PATTERN COMMAND...: does it print that?
not() { ! "$@"; }
says() { { "${@:2}" 2>&1 || true; } | grep -E -- "$1"; }

# quietly TEXT COMMAND...: runs it with its output in a log, says how it goes, and shows the end
# of the log if it fails.
quietly() {
    local text=$1 log=$demo_tmp/output start=$SECONDS rc=0
    shift
    printf '  %s ... ' "$text"
    (trap - ERR; "$@") >"$log" 2>&1 </dev/null &
    quiet_pid=$!
    while kill -0 "$quiet_pid" 2>/dev/null; do
        sleep 0.2
        # A long step shows what it is at, on a line of its own.
        if [ $((SECONDS - start)) -ge 20 ]; then
            printf '\n    %s%s%s ' "$dim" "$(tail -n 1 "$log" | tr -d '\r' | cut -c -90)" "$plain"
            start=$SECONDS
        fi
    done
    wait "$quiet_pid" || rc=$?
    quiet_pid=''
    if [ "$rc" != 0 ]; then
        printf '%sfailed%s\n' "$red" "$plain"
        tail -n 40 "$log" | sed 's/^/    | /'
        return "$rc"
    fi
    printf 'done\n'
}

# verdict: the last lines; fails if a claim did.
verdict() {
    local text
    if [ ${#broken[@]} -eq 0 ]; then
        printf '\n%sAll %d claims hold.%s (%d s)\n' "$green" "$claims" "$plain" "$SECONDS"
        return 0
    fi
    printf '\n%s%d of %d claims do not hold:%s\n' "$red" "${#broken[@]}" "$claims" "$plain"
    for text in "${broken[@]}"; do printf '  ✗ %s\n' "$text"; done
    # Silences are measured in real time: a machine that is busy with other things adds to them.
    printf 'Load of this machine: %s, on %d processors.\n' "$(cut -d' ' -f1-3 /proc/loadavg)" "$(nproc)"
    return 1
}
