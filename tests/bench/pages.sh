# shellcheck shell=bash
# Hugepages for what needs more than scripts/setup reserves: reserved for the run, given back at
# its end.
pages_dir=/sys/kernel/mm/hugepages/hugepages-2048kB
pages_added=0

# pages_want N: until N are free; others may hold some for a while. Fails if the machine has none.
pages_want() {
    local want=$1 total
    if pages_free "$want"; then return 0; fi
    wait_for 5 "$want free hugepages" pages_free "$want" 2>/dev/null && return 0
    total=$(<"$pages_dir/nr_hugepages")
    pages_missing=$((want - $(<"$pages_dir/free_hugepages")))
    tb_say "reserving $pages_missing hugepages more for the time of the run"
    pages_added=$((pages_added + pages_missing))
    printf '%s\n' $((total + pages_missing)) >"$pages_dir/nr_hugepages"
    if pages_free "$want"; then return 0; fi
    tb_fail "$want hugepages are needed, and only $(<"$pages_dir/free_hugepages") are to be had"
}
pages_free() { [ "$(<"$pages_dir/free_hugepages")" -ge "$1" ]; }

pages_restore() {
    [ "$pages_added" = 0 ] || printf '%s\n' $(($(<"$pages_dir/nr_hugepages") - pages_added)) >"$pages_dir/nr_hugepages"
    pages_added=0
}
