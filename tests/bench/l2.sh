# shellcheck shell=bash
# Two guests (bench_traffic) on native vhost-user ports of one switch with one PMD core: VM "gen"
# sends, VM "sink" swallows or answers. A round starts a plain switch and measures it plain and
# with ct(), then starts it with Moat preloaded: with the default table for the rows of few flows,
# with a larger one for those of a million. What each side measures is in l2_row_*.
# Used by scripts/bench: wants its variables, sample(), failed() and pages_want().
# shellcheck disable=SC2154
: "${testbed_lib:?source testbed.sh}"

l2_window=0.3 # seconds: see l2_cycles
l2_few=256
l2_many=1000000
l2_many_table=4194304 # sessions of the engine; both slots have l2_many
l2_many_pages=340     # that it takes
l2_guest_pages=128
l2_settle=0.15 # between windows, for everybody else

l2_dir() { printf '%s/l2\n' "$TESTBED_DIR"; }

# --- the guests ---

# l2_guests_start: both on core 0.
l2_guests_start() {
    local dir vm ring=0 args=()
    dir=$(l2_dir)
    rm -rf "$dir"
    mkdir -p "$dir"
    mkfifo "$dir/commands" "$dir/answers"
    exec {l2_commands}<>"$dir/commands" {l2_answers}<>"$dir/answers"
    for vm in sink gen; do
        args+=("--vdev=net_virtio_user$ring,path=$dir/$vm.sock,server=1,queues=1,mrg_rxbuf=1,in_order=0")
        ring=$((ring + 1))
    done
    # shellcheck disable=SC2016
    testbed_spawn guest-traffic "$dir/guests.out" bash -c 'in=$1 out=$2; shift 2; exec "$@" <"$in" >"$out"' - "$dir/commands" "$dir/answers" \
        "$programs/bench_traffic" --lcores 0@0 --in-memory --single-file-segments --no-pci --no-telemetry -m $((l2_guest_pages * 2)) "${args[@]}"
    for vm in sink gen; do
        WAIT_LOG=$dir/guests.out wait_for 20 "guest $vm" host_port_up A "$vm"
    done
    [ "$(l2_hear 10)" = ready ] || { tb_tail "$dir/guests.out"; tb_fail "the guests do not start"; return 1; }
    l2_guests=$(testbed_pid guest-traffic)
}

l2_guests_stop() {
    testbed_kill guest-traffic KILL
    exec {l2_commands}>&- {l2_answers}>&-
}

# l2_hear SECONDS / l2_tell SECONDS COMMAND...: an answer; a command and its answer.
# There is never more than one to come.
l2_hear() { timeout "$1" head -n 1 <&"$l2_answers"; }
l2_tell() {
    local seconds_=$1
    shift
    printf '%s\n' "$*" >&"$l2_commands"
    l2_hear "$seconds_" || { tb_fail "the guests do not answer to: $*"; return 1; }
}

# --- windows ---

# l2_priority fifo|other: for the length of a window the switch and the guests have their
# cores to themselves; this (sub)shell and the switch's main thread come before them.
l2_priority() {
    local switch=/proc/$l2_switch/task guests=/proc/$l2_guests/task task name
    if [ "$1" = fifo ]; then chrt -f -p 3 $BASHPID >/dev/null; fi
    for task in "$switch"/* "$guests"/*; do
        # A thread may have ended. (Not name=$(<FILE): a file that is gone ends this shell.)
        { read -r name <"$task/comm"; } 2>/dev/null || continue
        case "$1 $task $name" in
        fifo*pmd*) chrt -f -p 1 "${task##*/}" ;;
        "fifo $switch"*) chrt -f -p 2 "${task##*/}" ;;
        fifo*) chrt -f -p 1 "${task##*/}" ;;
        *) chrt -o -p 0 "${task##*/}" ;;
        esac 2>/dev/null || true
    done
    if [ "$1" = other ]; then chrt -o -p 0 $BASHPID >/dev/null; fi
}

# l2_busy FILE: busy cycles per packet of the PMD thread, and packets, from pmd-stats-show.
l2_busy() {
    awk '/^pmd thread/ {pmd = 1} /^main thread/ {pmd = 0}
        pmd && /packets received:/ {n = $3}
        pmd && /processing cycles:/ {busy = $3}
        END {if (n > 1000) printf "%.2f %d\n", busy / n, n}' "$1"
}

l2_median() { sort -g | awk '{v[NR] = $1} END {print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'; }

# l2_cycles KEY ROUND FLOWS ORDER: cycles per packet, the median of windows of 0.3 s, with pauses:
# longer ones would starve the rest of the machine, and the kernel would step in.
l2_cycles() {
    local key=$1 round=$2 windows i got=() packets=0 value n before after
    windows=$(awk -v s="$seconds" -v w=$l2_window 'BEGIN {n = int(s / w + .5); print n < 1 ? 1 : n}')
    l2_tell 10 flows "$3" "$4" >/dev/null
    sleep 0.3 # the caches follow
    read -r _ before < <(l2_tell 5 count)
    for ((i = 0; i < windows; i++)); do
        l2_priority fifo
        host_appctl A dpif-netdev/pmd-stats-clear
        sleep $l2_window
        host_appctl A dpif-netdev/pmd-stats-show >"$TESTBED_DIR/stats"
        l2_priority other
        read -r value n < <(l2_busy "$TESTBED_DIR/stats") || true
        [ -z "${value:-}" ] || { got+=("$value"); packets=$((packets + n)); }
        value='' n=''
        sleep $l2_settle
    done
    read -r _ after < <(l2_tell 5 count)
    l2_tell 5 stop >/dev/null
    if [ ${#got[@]} -lt "$windows" ]; then
        failed "$key" "the switch forwarded next to nothing"
    elif [ $(((after - before) * 10)) -lt $((packets * 9)) ]; then
        failed "$key" "the sink got $((after - before)) packets of $packets"
    else
        value=$(printf '%s\n' "${got[@]}" | l2_median)
        tb_say "round $round of $runs: $key $value cycles/packet ($(printf '%s ' "${got[@]}"))"
        sample "$key" "$round" "$value"
    fi
}

# l2_many_cycles KEY ROUND: the same for a million flows, each of which has been seen.
l2_many_cycles() {
    l2_tell 30 fill $l2_many >/dev/null
    l2_cycles "$1" "$2" $l2_many random
}

# l2_knee LEN: the highest rate of round trips that is borne without a queue that stands.
l2_knee() {
    local low=1000 high
    l2_priority fifo
    high=$(l2_tell 5 most "$1" 100)
    l2_priority other
    for _ in 1 2; do
        sleep $l2_settle
        l2_priority fifo
        read -r low high < <(l2_tell 5 knee "$1" "$low" "$high" 20 5)
        l2_priority other
    done
    echo "$low"
}

# l2_find_load SIDE: before the first round, one of plain, ct, moat: where its knees are. Each round adds one.
l2_find_load() {
    local len
    for len in $(l2_lengths); do
        for _ in 1 2 3; do l2_knees[$1.$len]+=" $(l2_knee "$len")"; done
        tb_say "$1, $len bytes: bears ${l2_knees[$1.$len]} round trips a second"
    done
}
declare -A l2_knees=() l2_rates=()

l2_bears() { # SIDE LEN: the median
    # shellcheck disable=SC2086
    printf '%.0f\n' "$(printf '%s\n' ${l2_knees[$1.$2]:-0} | l2_median)"
}

# l2_set_rates: for a round: half of what the slower one of plain and moat bears, for both of them; ct() has
# half of its own if that is less.
l2_set_rates() {
    local len least side rate
    for len in $(l2_lengths); do
        least=$(for side in plain moat; do l2_bears $side "$len"; done | sort -g | head -n 1)
        for side in plain moat ct; do
            rate=$least
            if [ $side = ct ] && [ "$(l2_bears ct "$len")" -lt "$least" ]; then rate=$(l2_bears ct "$len"); fi
            l2_rates[$side.$len]=$((rate / 2))
        done
    done
}

# l2_trips SIDE ROUND LEN: round trips at half load. A window counts if its load was what it was to be.
l2_trips() {
    local side=$1 round=$2 len=$3 rate windows=7 i n lost p50 p999 max kept standing knee light out=()
    rate=${l2_rates[$side.$len]}
    [ "$rate" -gt 0 ] || { failed "lat.$len.$side.p999" "it bears no load at all"; return 0; }
    for ((i = 0; i < windows; i++)); do
        sleep $l2_settle
        l2_priority fifo
        read -r n lost p50 _ p999 max kept standing < <(l2_tell 5 ask "$len" "$rate" 100)
        l2_priority other
        out+=("$n $lost $p50 $p999 $max $kept $standing")
        if [ $((lost * 1000)) -gt "$n" ]; then failed "lat.$len.$side.p999" "$lost of $n requests had no answer"; fi
    done
    for i in p50:3 p999:4; do
        sample "lat.$len.$side.${i%:*}" "$round" "$(printf '%s\n' "${out[@]}" | awk -v f="${i#*:}" '{print $f / 1000}' | l2_median)"
    done
    kept=$(printf '%s\n' "${out[@]}" | awk '{print $6}' | l2_median)
    standing=$(printf '%s\n' "${out[@]}" | awk '{print $7}' | l2_median)
    sleep $l2_settle
    l2_priority fifo
    read -r _ _ light _ < <(l2_tell 5 ask "$len" $((rate / 10)) 100)
    l2_priority other
    sample "lat.$len.$side.light" "$round" "$light"
    knee=$(l2_knee "$len")
    l2_knees[$side.$len]+=" $knee"
    sample "lat.$len.$side.load" "$round" "$(awk -v r="$rate" -v k="$knee" 'BEGIN {printf "%.1f", k ? 100 * r / k : 999}')"
    sample "lat.$len.$side.kept" "$round" "$kept"
    sample "lat.$len.$side.standing" "$round" "$standing"
    tb_say "round $round of $runs: $side, $len bytes: at $rate round trips a second, bears $knee: $(printf '%s; ' "${out[@]}")(answers, lost, p50, p99.9, longest in ns, % of the rate kept, % of the time with a queue)"
}

# l2_check_load: was it half load? By the medians over all rounds. Plain may bear so much more than Moat
# that it has less.
l2_check_load() {
    local side len load kept standing light i
    for side in plain ct moat; do
        for len in $(l2_lengths); do
            for i in load kept standing light; do
                declare "$i=$(awk -v k="lat.$len.$side.$i" '$1 == k {print $3}' "$samples" | l2_median)"
            done
            tb_say "$side, $len bytes: at $load % of what it bears; $kept % of the rate kept, a queue in $standing % of the time; p50 of $light ns at a tenth of the rate (medians)"
            awk -v l="$load" -v k="$kept" -v s="$standing" -v side="$side" 'BEGIN {exit !((l >= 40 || side == "plain") && l <= 60 && k >= 95 && s <= 5)}' ||
                for i in p50 p999; do
                    failed "lat.$len.$side.$i" "not at half load: at $load % of what it bears, $kept % of the rate kept, a queue in $standing % of the time"
                done
        done
    done
}

# l2_lengths: of the frames, without the wire's checksum; 1500 is what the IP packet has.
l2_lengths() {
    if wanted latency-64-; then echo 60; fi
    if wanted latency-1500-; then echo 1514; fi
}

l2_latency() { # SIDE ROUND
    local len
    for len in $(l2_lengths); do l2_trips "$1" "$2" "$len"; done
}

# l2_before: where half load is, on each side.
l2_before() {
    local dir
    dir=$(l2_dir)
    l2_up 0 || return 1
    l2_flow_tables plain
    l2_guests_start
    l2_find_load plain
    l2_flow_tables ct
    l2_find_load ct
    l2_down
    HOST_ENV=()
    if l2_moat_up l2.moat 32; then
        l2_find_load moat
        l2_down
    fi
    rm -f "$(host_mapping A)"
}

# --- sides ---

l2_flow_tables() { # NAME: what the bridge does with the traffic
    local in=in_port=vhu-gen out=output:vhu-sink back=in_port=vhu-sink rule=tp_dst=0x400/0xffc0
    host_ofctl A del-flows br0
    case $1 in
    plain) printf '%s\n' "$in actions=$out" "$back actions=output:vhu-gen" ;;
    ct) # the same rule as l2.policy
        printf '%s\n' "table=0,ip actions=ct(table=1)" \
            "table=1,ip,ct_state=+trk+est actions=goto_table:2" \
            "table=1,udp,ct_state=+trk+new,$in,$rule actions=ct(commit),goto_table:2" \
            "table=2,$in actions=$out" "table=2,$back actions=output:vhu-gen"
        ;;
    ct2) # once for each VM, in a zone of its own, as OVN does it
        printf '%s\n' "table=0,ip actions=ct(table=1,zone=1)" \
            "table=1,ip,ct_state=+trk+est actions=ct(table=2,zone=2)" \
            "table=1,udp,ct_state=+trk+new,$in,$rule actions=ct(commit,zone=1),ct(table=2,zone=2)" \
            "table=2,ip,ct_state=+trk+est actions=goto_table:3" \
            "table=2,udp,ct_state=+trk+new,$in,$rule actions=ct(commit,zone=2),goto_table:3" \
            "table=3,$in actions=$out" "table=3,$back actions=output:vhu-gen"
        ;;
    esac | host_ofctl A add-flows br0 -
    host_appctl A dpctl/flush-conntrack
}

# l2_want_conns KEY N: in the tracker.
l2_want_conns() {
    local have
    have=$(host_appctl A dpctl/ct-get-nconns)
    [ "$have" = "$2" ] || failed "$1" "$have connections in the tracker in place of $2"
}

# l2_want_sessions KEY N: both ends of each flow are judged, and nothing was refused.
l2_want_sessions() {
    local key=$1 want=$2 vm sessions from to refused ok=
    while read -r vm _ sessions _ from _ to _ refused; do
        case $vm in
        gen) [ "$from" -gt 100000 ] && ok+=g ;;
        sink) [ "$to" -gt 100000 ] && ok+=s ;;
        esac
        [ "$sessions" = "$want" ] || failed "$key" "$vm has $sessions sessions in place of $want"
        [ "$refused" = 0 ] || failed "$key" "$refused packets of $vm were refused"
    done < <("$programs/bench_enforce" "$(host_rundir A)/moat.ctl" counters gen sink)
    [ "$ok" = gs ] || failed "$key" "Moat has not judged the traffic at both slots"
}

l2_up() { # EXTRA-PAGES [PRELOAD]
    pages_want $((switch_pages + l2_guest_pages + $1)) || return 1
    MOAT_PRELOAD=${2:-} host_switch_start A
    l2_switch=$(testbed_pid A-switch)
}
l2_down() {
    l2_guests_stop
    host_switch_stop A
}

l2_wants_few() { wanted l2-stateful-256 || wanted l2-kept-256 || wanted l2-total-256; }
l2_wants_many() { wanted l2-stateful-1m || wanted l2-kept-1m; }

l2_round_plain() {
    l2_up 0 || return 1
    l2_flow_tables plain
    l2_guests_start
    if l2_wants_few; then l2_cycles l2.plain "$1" $l2_few order; fi
    if l2_wants_many; then l2_many_cycles l2m.plain "$1"; fi
    l2_latency plain "$1"
    l2_flow_tables ct
    if l2_wants_few; then
        l2_cycles l2.ct "$1" $l2_few order
        l2_want_conns l2.ct $l2_few
    fi
    l2_latency ct "$1"
    if wanted l2-stateful-256-two-zones; then
        l2_flow_tables ct2
        l2_cycles l2.ct2 "$1" $l2_few order
        l2_want_conns l2.ct2 $((2 * l2_few))
    fi
    if l2_wants_many; then
        l2_flow_tables ct
        l2_many_cycles l2m.ct "$1"
        l2_want_conns l2m.ct $l2_many
    fi
    l2_down
}

# l2_moat_up KEY PAGES: a switch with Moat, and both guests under the policy.
l2_moat_up() {
    local dir key=$1 loader=$build/datapath/libmoat.so
    dir=$(l2_dir)
    rm -f "$(host_mapping A)"
    l2_up "$2" "$loader" || return 1
    if ! WAIT_LOG=$(host_dir A)/ovs-vswitchd.log wait_for 10 "Moat's control socket" test -S "$(host_rundir A)/moat.ctl"; then
        failed "$key" "the switch did not load Moat"
    elif ! "$programs/bench_enforce" "$(host_rundir A)/moat.ctl" apply "$top/tests/bench/l2.policy" \
        "gen,$dir/gen.sock,02:00:00:00:00:01,10.254.0.1" "sink,$dir/sink.sock,02:00:00:00:00:02,10.253.0.1"; then
        failed "$key" "the slots could not be claimed"
    else
        l2_flow_tables plain
        l2_guests_start
        return 0
    fi
    host_switch_stop A
    return 1
}

l2_round_moat() {
    if l2_wants_few || wanted latency-; then
        HOST_ENV=()
        if l2_moat_up l2.moat 32; then
            if l2_wants_few; then
                l2_cycles l2.moat "$1" $l2_few order
                l2_want_sessions l2.moat $l2_few
            fi
            l2_latency moat "$1"
            l2_down
        fi
    fi
    if l2_wants_many; then
        # shellcheck disable=SC2034
        HOST_ENV=("MOAT_SESSIONS=$l2_many_table")
        if l2_moat_up l2m.moat $l2_many_pages; then
            l2_many_cycles l2m.moat "$1"
            l2_want_sessions l2m.moat $l2_many
            l2_down
        fi
    fi
    rm -f "$(host_mapping A)"
}

# l2_kept ROUND: what share of the plain rate is left, in per cent, from the cycles of the round.
l2_kept() {
    local set side
    for set in l2 l2m; do
        for side in moat ct; do
            awk -v r="$1" -v plain="$set.plain" -v key="$set.$side" '$2 == r && $1 == plain {p = $3} $2 == r && $1 == key {v = $3}
                END {if (p && v) printf "%s.kept %s %.2f\n", key, r, 100 * p / v}' "$samples" >"$TESTBED_DIR/kept"
            cat "$TESTBED_DIR/kept" >>"$samples"
        done
    done
}

l2_rounds() {
    local round dir
    dir=$(l2_dir)
    # shellcheck disable=SC2034
    HOST_MAXSLEEP=none HOST_PMD_MASK=2
    tb_say "starting a switch"
    pages_want "$switch_pages"
    MOAT_PRELOAD='' host_start A
    host_vsctl A set bridge br0 fail-mode=secure
    host_port_add A sink "$dir/sink.sock" sink-nic
    host_port_add A gen "$dir/gen.sock" gen-nic
    host_switch_stop A
    if wanted latency-; then l2_before; fi
    for ((round = 1; round <= runs; round++)); do
        l2_set_rates
        if [ $((round % 2)) = 1 ]; then
            l2_round_plain $round
            l2_round_moat $round
        else
            l2_round_moat $round
            l2_round_plain $round
        fi
        l2_kept $round
    done
    if wanted latency-; then l2_check_load; fi
    host_ovsdb_stop A
}
