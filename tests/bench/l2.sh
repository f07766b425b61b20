# shellcheck shell=bash
# Two testpmd guests on native vhost-user ports of one switch with one PMD core. VM "gen"
# sends 256 UDP flows of 64-byte packets, VM "sink" swallows them. A round starts a plain
# switch and measures it with one flow and with ct(), then starts it with Moat preloaded.
# Used by scripts/bench: wants its variables, sample() and failed().
# shellcheck disable=SC2154
: "${testbed_lib:?source testbed.sh}"

l2_flows=256
l2_window=0.3 # seconds: see l2_measure
# What testpmd's flowgen sends; its code has these numbers.
l2_src=10.254.0.0
l2_dst=10.253.0.0/24
l2_src_mac=00:01:02:03:04:00
l2_dst_mac=00:01:02:03:04:01

l2_memory() { printf '/dev/hugepages/%s-guestsmap_0\n' "$TESTBED_ID"; } # EAL's name for it
l2_dir() { printf '%s/l2\n' "$TESTBED_DIR"; }

# l2_guests_start: both guests are one testpmd on core 0. The traffic goes one way only:
# of the streams sink -> gen, gen -> null and null -> sink the last two are switched off by
# stopping the queues of the third port (testpmd has no other way to say so).
l2_guests_start() {
    local dir ring vm args=()
    dir=$(l2_dir)
    rm -rf "$dir"
    mkdir -p "$dir"
    printf '\xd4\xc3\xb2\xa1\2\0\4\0\0\0\0\0\0\0\0\0\xff\xff\0\0\1\0\0\0' >"$dir/empty.pcap"
    mkfifo "$dir/commands"
    exec {l2_commands}<>"$dir/commands"
    ring=0
    for vm in sink gen; do
        args+=("--vdev=net_virtio_user$ring,path=$dir/$vm.sock,server=1,queues=1,mrg_rxbuf=1,in_order=0")
        ring=$((ring + 1))
    done
    # shellcheck disable=SC2016
    testbed_spawn guest-testpmd "$dir/testpmd.out" bash -c 'in=$1; shift; exec "$@" <"$in"' - "$dir/commands" \
        stdbuf -oL dpdk-testpmd --lcores '0@0,1@0' --single-file-segments --no-pci -m 384 --file-prefix="$TESTBED_ID-guests" \
        "${args[@]}" "--vdev=net_pcap0,rx_pcap=$dir/empty.pcap,tx_pcap=/dev/null" -- -i --port-topology=chained \
        --forward-mode=flowgen --flowgen-flows=$l2_flows --total-num-mbufs=65536 --no-lsc-interrupt
    for vm in sink gen; do
        WAIT_LOG=$dir/testpmd.out wait_for 20 "guest $vm" host_port_up A "$vm"
    done
    WAIT_LOG=$dir/testpmd.out wait_for 10 "testpmd" grep -q '^testpmd>' "$dir/testpmd.out"
    printf '%s\n' "port 2 rxq 0 stop" "port 2 txq 0 stop" "start" >&"$l2_commands"
    WAIT_LOG=$dir/testpmd.out wait_for 10 "the traffic" l2_forwards
}
l2_forwards() { [ "$(l2_received)" -gt 10000 ]; }

l2_guests_stop() {
    testbed_kill guest-testpmd KILL
    exec {l2_commands}>&-
    rm -rf "/var/run/dpdk/$TESTBED_ID-guests" "$(l2_memory)"
}

# l2_received: how many packets the sink has had, by its own count.
l2_received() {
    local out before
    out=$(l2_dir)/testpmd.out
    before=$(grep -c '^  RX-packets' "$out" || true)
    printf 'show port stats 0\n' >&"$l2_commands"
    for _ in {1..100}; do
        sleep 0.02
        [ "$(grep -c '^  RX-packets' "$out" || true)" -le "$before" ] || break
    done
    awk '/^  RX-packets/ {n = $2} END {print n + 0}' "$out"
}

# l2_priority fifo|other: for the length of a window the switch and the guests have their
# cores to themselves; this shell and the switch's main thread come before them.
l2_priority() {
    local switch=/proc/$l2_switch/task guests=/proc/$l2_guests/task task
    for task in "$switch"/* "$guests"/*; do
        case "$1 $task $(<"$task/comm")" in
        fifo*pmd*) chrt -f -p 1 "${task##*/}" ;;
        "fifo $switch"*) chrt -f -p 2 "${task##*/}" ;;
        fifo*) chrt -f -p 1 "${task##*/}" ;;
        *) chrt -o -p 0 "${task##*/}" ;;
        esac 2>/dev/null || true # a thread may have ended
    done
}

# l2_cycles FILE: busy cycles per packet of the PMD thread, and packets, from pmd-stats-show.
l2_cycles() {
    awk '/^pmd thread/ {pmd = 1} /^main thread/ {pmd = 0}
        pmd && /packets received:/ {n = $3}
        pmd && /processing cycles:/ {busy = $3}
        END {if (n > 1000) printf "%.2f %d\n", busy / n, n}' "$1"
}

# l2_measure KEY ROUND: the median of windows of 0.3 s, with pauses: longer ones would
# starve the rest of the machine, and the kernel would step in.
l2_measure() {
    local key=$1 round=$2 windows i got=() packets=0 value n before after
    windows=$(awk -v s="$seconds" -v w=$l2_window 'BEGIN {n = int(s / w + .5); print n < 1 ? 1 : n}')
    before=$(l2_received)
    for ((i = 0; i < windows; i++)); do
        chrt -f -p 3 $$ >/dev/null
        l2_priority fifo
        host_appctl A dpif-netdev/pmd-stats-clear
        sleep $l2_window
        host_appctl A dpif-netdev/pmd-stats-show >"$TESTBED_DIR/stats"
        l2_priority other
        chrt -o -p 0 $$ >/dev/null
        read -r value n < <(l2_cycles "$TESTBED_DIR/stats") || true
        [ -z "${value:-}" ] || { got+=("$value"); packets=$((packets + n)); }
        value='' n=''
        sleep 0.15
    done
    after=$(l2_received)
    if [ ${#got[@]} -lt "$windows" ]; then
        failed "$key" "the switch forwarded next to nothing"
    elif [ $(((after - before) * 10)) -lt $((packets * 9)) ]; then
        failed "$key" "the sink got $((after - before)) packets of $packets"
    else
        value=$(printf '%s\n' "${got[@]}" | sort -g | awk '{v[NR] = $1} END {print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}')
        tb_say "round $round of $runs: $key $value cycles/packet ($(printf '%s ' "${got[@]}"))"
        sample "$key" "$round" "$value"
    fi
}

l2_flow_tables() { # NAME: what the bridge does with the traffic
    local in=in_port=vhu-gen out=output:vhu-sink back=in_port=vhu-sink
    host_ofctl A del-flows br0
    case $1 in
    plain) printf '%s\n' "$in actions=$out" "$back actions=output:vhu-gen" ;;
    ct) # the same rule as l2.policy
        printf '%s\n' "table=0,ip actions=ct(table=1)" \
            "table=1,ip,ct_state=+trk+est actions=goto_table:2" \
            "table=1,udp,ct_state=+trk+new,$in,tp_dst=1001 actions=ct(commit),goto_table:2" \
            "table=2,$in actions=$out" "table=2,$back actions=output:vhu-gen"
        ;;
    ct2) # once for each VM, in a zone of its own, as OVN does it
        printf '%s\n' "table=0,ip actions=ct(table=1,zone=1)" \
            "table=1,ip,ct_state=+trk+est actions=ct(table=2,zone=2)" \
            "table=1,udp,ct_state=+trk+new,$in,tp_dst=1001 actions=ct(commit,zone=1),ct(table=2,zone=2)" \
            "table=2,ip,ct_state=+trk+est actions=goto_table:3" \
            "table=2,udp,ct_state=+trk+new,$in,tp_dst=1001 actions=ct(commit,zone=2),goto_table:3" \
            "table=3,$in actions=$out" "table=3,$back actions=output:vhu-gen"
        ;;
    esac | host_ofctl A add-flows br0 -
    host_appctl A dpctl/flush-conntrack
    sleep 1 # until the caches follow, and each flow has been seen
}

# l2_side SIDE ROUND WANTED-CONNECTIONS: one flow table on the switch that runs.
l2_side() {
    local have
    l2_flow_tables "$1"
    l2_measure "l2.$1" "$2"
    have=$(host_appctl A dpctl/ct-get-nconns)
    [ "$have" = "$3" ] || failed "l2.$1" "$have connections in the tracker in place of $3"
}

# Other programs of this machine may hold hugepages for a while.
l2_pages_free() { [ "$(</sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages)" -ge $((switch_pages + 192 + 64)) ]; }
l2_up() { # [PRELOAD]
    l2_pages_free || tb_say "waiting for hugepages"
    wait_for 180 "$((switch_pages + 192 + 64)) free hugepages" l2_pages_free
    MOAT_PRELOAD=${1:-} host_switch_start A
    l2_switch=$(testbed_pid A-switch)
}
l2_down() {
    l2_guests_stop
    host_switch_stop A
}

l2_connect() {
    l2_guests_start
    l2_guests=$(testbed_pid guest-testpmd)
}

l2_round_plain() {
    l2_up
    l2_flow_tables plain
    l2_connect
    l2_side plain "$1" 0
    l2_side ct "$1" $l2_flows
    if wanted l2-stateful-256-two-zones; then l2_side ct2 "$1" $((2 * l2_flows)); fi
    l2_down
}

# Both ends of each flow are judged: 256 sessions at each slot, nothing refused since.
l2_check_moat() {
    local vm sessions from to refused ok=
    while read -r vm _ sessions _ from _ to _ refused; do
        case $vm in
        gen) [ "$from" -gt 100000 ] && ok+=g ;;
        sink) [ "$to" -gt 100000 ] && ok+=s ;;
        esac
        [ "$sessions" = $l2_flows ] || failed l2.moat "$vm has $sessions sessions in place of $l2_flows"
        [ "$refused" = 0 ] || failed l2.moat "$refused packets of $vm were refused"
    done < <("$programs/bench_enforce" "$(host_rundir A)/moat.ctl" counters gen sink)
    [ "$ok" = gs ] || failed l2.moat "Moat has not judged the traffic at both slots"
}

l2_round_moat() {
    local dir loader=$build/datapath/libmoat.so
    dir=$(l2_dir)
    if [ ! -e "$loader" ] || [ ! -x "$programs/bench_enforce" ]; then
        failed l2.moat "no $loader"
        return 0
    fi
    rm -f "$(host_mapping A)"
    l2_up "$loader"
    if ! WAIT_LOG=$(host_dir A)/ovs-vswitchd.log wait_for 10 "Moat's control socket" test -S "$(host_rundir A)/moat.ctl"; then
        failed l2.moat "the switch did not load Moat"
        host_switch_stop A
        return 0
    fi
    l2_flow_tables plain
    "$programs/bench_enforce" "$(host_rundir A)/moat.ctl" apply "$top/tests/bench/l2.policy" \
        "gen,$dir/gen.sock,$l2_src_mac,$l2_src" "sink,$dir/sink.sock,$l2_dst_mac,$l2_dst" ||
        { failed l2.moat "the slots could not be claimed"; host_switch_stop A; return 0; }
    l2_connect
    sleep 1
    l2_measure l2.moat "$1"
    l2_check_moat
    l2_down
}

l2_rounds() {
    local round dir
    dir=$(l2_dir)
    # shellcheck disable=SC2034
    HOST_MAXSLEEP=none HOST_PMD_MASK=2
    testbed_file "$(l2_memory)"
    tb_say "starting a switch"
    wait_for 180 "$switch_pages free hugepages" l2_pages_free
    MOAT_PRELOAD='' host_start A
    host_vsctl A set bridge br0 fail-mode=secure
    host_port_add A sink "$dir/sink.sock" sink-nic
    host_port_add A gen "$dir/gen.sock" gen-nic
    host_switch_stop A
    for ((round = 1; round <= runs; round++)); do
        if [ $((round % 2)) = 1 ]; then
            l2_round_plain $round
            l2_round_moat $round
        else
            l2_round_moat $round
            l2_round_plain $round
        fi
    done
    host_ovsdb_stop A
}
