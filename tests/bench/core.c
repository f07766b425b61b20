/* SPDX-License-Identifier: Apache-2.0 */

/* The filter core alone, without a switch.
 *
 *   bench_core established udp|tcp CONNECTIONS   cycles per packet of live sessions, both slots
 *   bench_core one-slot udp|tcp CONNECTIONS      the same, one slot
 *   bench_core new udp|tcp                       connections opened per second, both slots
 *   bench_core new-rules                         the same, one slot, 1000 rules, as many ending
 *   bench_core stall                             the longest burst of that, microseconds
 *   bench_core memory 4|6                        bytes a session, IPv4 or IPv6
 *   bench_core capacity SESSIONS                 how many go in
 *   bench_core ageing CONNECTIONS                per cent of a core
 *   bench_core threads lookup|insert|shared      millions a second: two threads, one thread
 *   bench_core hostile syn-flood|random|fragments|cache   cycles per packet: it, uniform traffic
 *   bench_core classify RULES                    nanoseconds per flow that meets the classifier
 *
 * Prints one line.  MOAT_BENCH_MAPPING: a file on a hugetlbfs for the tables, to be removed
 * by the caller. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/classify.h"
#include "datapath/ruleset.h"

#include "core_rows.h"
#include "frames.h"
#include "guests.h"
#include "rig.h"
#include "timing.h"

static struct guests vms;

/* --- classification --- */

struct classify {
    struct moat_ruleset *rules;
    uint64_t random;
    unsigned n_rules;
    struct moat_flow flows[FRAME_BURST];
    struct moat_match out[FRAME_BURST];
};

static uint64_t classify_burst(void *c_)
{
    struct classify *c = c_;
    uint64_t t;

    for (unsigned i = 0; i < FRAME_BURST; i++) {
        uint32_t r = next_random(&c->random) % (c->n_rules * 2); /* half of them match no rule */
        struct moat_flow *f = &c->flows[i];

        memset(f, 0, sizeof *f);
        f->dir = MOAT_TO_VM;
        f->family = MOAT_FAM_IP4;
        f->proto = r & 1 ? 6 : 17;
        f->sport = 40000;
        f->dport = (uint16_t)(1000 + r % 500);
        memcpy(f->local, (uint8_t[]){10, 0, 0, 2}, 4);
        memcpy(f->remote, (uint8_t[]){10, 1, (uint8_t)(r >> 8), (uint8_t)r}, 4);
    }
    t = __rdtsc();
    moat_classify(c->rules, c->flows, FRAME_BURST, c->out);
    return __rdtsc() - t;
}

static void classify(unsigned n_rules)
{
    static struct classify c = {.random = 88172645463325252u};
    char *policy, err[256] = "";
    uint8_t *blob;
    size_t len;

    if (guests_add(&vms, "a,/run/bench/a.sock,02:00:00:00:00:01,10.0.0.1") ||
        guests_add(&vms, "b,/run/bench/b.sock,02:00:00:00:00:02,10.0.0.2"))
        rig_die("no such VMs");
    if (n_rules < 1 || n_rules > 5000)
        rig_die("how many rules?");
    policy = rig_many_rules(n_rules);
    blob = guests_ruleset(&vms, 1, policy, &len);
    if (!blob)
        exit(1);
    if (moat_ruleset_check(blob, len, err, sizeof err))
        rig_die(err);
    c.n_rules = n_rules;
    c.rules = moat_ruleset_create(blob);
    if (!c.rules)
        rig_die("no memory");
    median_of(classify_burst, &c, 4);
    printf("%.2f\n", median_of(classify_burst, &c, CHUNK_BURSTS) / tsc_hz() * 1e9);
    moat_ruleset_destroy(c.rules);
    free(blob);
    free(policy);
}

/* --- */

static void usage(void)
{
    fprintf(stderr, "usage: bench_core established|one-slot udp|tcp CONNECTIONS | new udp|tcp | "
                    "new-rules | stall | memory 4|6 | capacity SESSIONS | ageing CONNECTIONS | "
                    "threads WHAT | hostile WHAT | classify RULES\n");
    exit(2);
}

static uint32_t number(const char *text)
{
    unsigned long n = strtoul(text, NULL, 0);

    if (!n || n > FRAMES_MAX_CONNS)
        usage();
    return (uint32_t)n;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "", *a = argc > 2 ? argv[2] : "";
    const char *b = argc > 3 ? argv[3] : "";
    int tcp = !strcmp(a, "tcp");

    if (!strcmp(mode, "established"))
        core_established(tcp, number(b));
    else if (!strcmp(mode, "one-slot"))
        core_one_slot(tcp, number(b));
    else if (!strcmp(mode, "new"))
        core_new(tcp);
    else if (!strcmp(mode, "new-rules"))
        core_new_rules();
    else if (!strcmp(mode, "stall"))
        core_stall();
    else if (!strcmp(mode, "memory"))
        core_memory(*a == '6');
    else if (!strcmp(mode, "capacity"))
        core_capacity(number(a));
    else if (!strcmp(mode, "ageing"))
        core_ageing(number(a));
    else if (!strcmp(mode, "threads"))
        core_threads(a);
    else if (!strcmp(mode, "hostile"))
        core_hostile(a);
    else if (!strcmp(mode, "classify"))
        classify(number(a));
    else
        usage();
    return 0;
}
