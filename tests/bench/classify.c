/* SPDX-License-Identifier: Apache-2.0 */

/* The classifier over generated rulesets (rulesets.h), beside DPDK's rte_acl.
 *
 *   bench_classify flows KIND RULES [SEED [PAIRS]]   nanoseconds per flow: KIND sg, acl, fw, ipc
 *   bench_classify build KIND|slowest RULES [SEED]   milliseconds from a blob to a usable ruleset
 *   bench_classify compile RULES                     milliseconds from a policy's text to a blob
 * (sg)
 *
 * Prints Moat's figure and, for flows, rte_acl's behind it: a line for each of PAIRS (1).  The
 * rest, such as memory, goes to standard error as lines "name value".
 *
 * Cold: the trace is longer than the caches, each flow another one, and the two candidates
 * take turns with parts of it, so that each finds the caches full of the other's data.  First
 * their answers are compared over the whole trace, and some with the slow reader's.
 *
 * Real-time while it measures, if it may be, but not before: the EAL's threads, which would inherit
 * that, and this one would not take turns on one core. */

#include <malloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/classify.h"
#include "datapath/ruleset.h"
#include "tests/lib/ruleset_walk.h"

#include "timing.h"
#include "guests.h"
#include "rulesets.h"

#ifdef MOAT_BENCH_ACL
#include "acl_peer.h"
#endif

#define N_FLOWS (1u << 18)
#define PART 4096u /* flows of one turn */
#define ROUNDS 3
#define N_WALKED 1000

static struct moat_flow *flows;
static struct rules *rules;
static struct moat_ruleset *ruleset;
static uint8_t *blob;
static size_t blob_len;

static void die(const char *what)
{
    fprintf(stderr, "bench_classify: %s\n", what);
    exit(1);
}

static unsigned kind_of(const char *name)
{
    unsigned kind = 0;

    while (kind < N_RULES_KINDS && strcmp(name, rules_kinds[kind]))
        kind++;
    if (kind == N_RULES_KINDS)
        die("KIND is sg, acl, fw or ipc");
    return kind;
}

static void prepare(unsigned kind, const char *n_rules, const char *seed)
{
    unsigned n = (unsigned)strtoul(n_rules, NULL, 0);
    char err[256];

    if (!n || n > 200000)
        die("RULES is 1 to 200000");
    rules = rules_create(kind, n, seed ? strtoull(seed, NULL, 0) : 1);
    blob = rules_blob(rules, &blob_len);
    if (moat_ruleset_check(blob, blob_len, err, sizeof err))
        die(err);
}

static void check_with_slow_reader(void)
{
    struct moat_match m;

    for (uint32_t i = 0; i < N_WALKED; i++) {
        const struct moat_flow *f = &flows[(uint64_t)i * N_FLOWS / N_WALKED];
        struct moat_decision d;

        moat_walk(blob, f, &d);
        moat_classify(ruleset, f, 1, &m);
        if (m.verdict != d.verdict || m.rule != d.rule)
            die("the classifier and the slow reader disagree");
    }
}

static uint64_t moat_part(uint32_t at, uint64_t *decided)
{
    struct moat_match out[FRAME_BURST];
    uint64_t t = __rdtsc();

    for (uint32_t i = at; i < at + PART; i += FRAME_BURST) {
        moat_classify(ruleset, &flows[i], FRAME_BURST, out);
        *decided += out[0].rule;
    }
    return __rdtsc() - t;
}

#ifdef MOAT_BENCH_ACL

static struct acl_peer *peer;
static struct acl_key *keys;

static uint64_t peer_part(uint32_t at, uint64_t *decided)
{
    uint32_t out[FRAME_BURST];
    uint64_t t = __rdtsc();

    for (uint32_t i = at; i < at + PART; i += FRAME_BURST) {
        acl_peer_classify(peer, &keys[i], FRAME_BURST, out);
        *decided += out[0];
    }
    return __rdtsc() - t;
}

/* Its fastest method over a part of the trace. */
static void choose_method(void)
{
    unsigned best = ACL_PEER_METHODS;
    uint64_t best_t = UINT64_MAX, sink = 0;

    for (unsigned m = 0; m < ACL_PEER_METHODS; m++) {
        uint64_t t = 0;

        if (!acl_peer_method(peer, m))
            continue;
        peer_part(0, &sink);
        for (uint32_t at = 0; at < 8 * PART; at += PART)
            t += peer_part(at, &sink);
        if (t < best_t) {
            best_t = t;
            best = m;
        }
    }
    if (best == ACL_PEER_METHODS || !acl_peer_method(peer, best))
        die("rte_acl has no vector method here");
    fprintf(stderr, "peer-method %s\n", acl_peer_method_name(best));
}

static void start_peer(void)
{
    const char *why;

    if (getenv("MOAT_BENCH_ALONE"))
        return;
    peer = acl_peer_create(rules, &why);
    if (!peer) {
        fprintf(stderr, "peer-failed %s\n", why);
        return;
    }
    keys = malloc(N_FLOWS * sizeof *keys);
    if (!keys)
        die("no memory");
    for (uint32_t i = 0; i < N_FLOWS; i++)
        acl_key_make(&keys[i], &flows[i]);
    fprintf(stderr, "peer-rules %u\npeer-build-ms %.1f\n", acl_peer_rules(peer),
            acl_peer_build_s(peer) * 1e3);
    for (uint32_t i = 0; i < N_FLOWS; i += FRAME_BURST) {
        struct moat_match m[FRAME_BURST];
        uint32_t out[FRAME_BURST];

        acl_peer_classify(peer, &keys[i], FRAME_BURST, out);
        moat_classify(ruleset, &flows[i], FRAME_BURST, m);
        for (unsigned k = 0; k < FRAME_BURST; k++)
            if (m[k].rule != out[k])
                die("the classifier and rte_acl disagree");
    }
    choose_method();
}

#else

static int *peer;

static uint64_t peer_part(uint32_t at, uint64_t *decided)
{
    (void)at;
    (void)decided;
    return 0;
}

static void start_peer(void)
{
    fprintf(stderr, "peer-failed built without DPDK\n");
}

#endif

static double ns_per_flow(uint64_t *parts, uint32_t n)
{
    static double t[ROUNDS * (N_FLOWS / PART)];

    for (uint32_t i = 0; i < n; i++)
        t[i] = (double)parts[i] / PART;
    qsort(t, n, sizeof *t, by_value);
    return t[n / 2] / tsc_hz() * 1e9;
}

static void one_pair(void)
{
    static uint64_t moat[ROUNDS * (N_FLOWS / PART)], other[ROUNDS * (N_FLOWS / PART)];
    uint64_t decided = 0;
    uint32_t n = 0;

    for (unsigned r = 0; r < ROUNDS; r++)
        for (uint32_t at = 0; at < N_FLOWS; at += PART) {
            moat[n] = moat_part(at, &decided);
            if (peer)
                other[n] = peer_part((at + N_FLOWS / 2) % N_FLOWS, &decided);
            n++;
        }
    if (!decided)
        die("no rule decides anything");
    printf("%.2f", ns_per_flow(moat, n));
    if (peer)
        printf(" %.2f", ns_per_flow(other, n));
    printf("\n");
}

static void be_real_time(void)
{
    struct sched_param first = {.sched_priority = 1};

    sched_setscheduler(0, SCHED_FIFO, &first);
}

static void measure_flows(const char *pairs)
{
    unsigned n = pairs ? (unsigned)strtoul(pairs, NULL, 0) : 1;
    uint64_t decided = 0;

    ruleset = moat_ruleset_create(blob);
    flows = malloc(N_FLOWS * sizeof *flows);
    if (!ruleset || !flows)
        die("no memory");
    rules_trace(rules, flows, N_FLOWS);
    check_with_slow_reader();
    start_peer();
    be_real_time();
    for (uint32_t at = 0; at < N_FLOWS; at += 2 * PART) /* warm */
        moat_part(at, &decided);
    while (n--)
        one_pair();
}

static double ms_of(uint64_t cycles)
{
    return (double)cycles / tsc_hz() * 1e3;
}

static double build_ms(void)
{
    double t[9];
    char err[256];

    for (unsigned i = 0; i < 9; i++) {
        struct mallinfo2 before = mallinfo2(), after;
        uint64_t from = __rdtsc();

        if (moat_ruleset_check(blob, blob_len, err, sizeof err))
            die(err);
        ruleset = moat_ruleset_create(blob);
        t[i] = ms_of(__rdtsc() - from);
        if (!ruleset)
            die("no memory");
        after = mallinfo2();
        if (!i)
            fprintf(stderr, "blob-bytes %zu\nindex-bytes %zu\n", blob_len,
                    after.uordblks + after.hblkhd - before.uordblks - before.hblkhd);
        moat_ruleset_destroy(ruleset);
    }
    qsort(t, 9, sizeof *t, by_value);
    return t[4];
}

/* Of one kind, or of the one that takes longest. */
static void measure_build(const char *kind_name, const char *n_rules, const char *seed)
{
    bool all = !strcmp(kind_name, "slowest");
    double slowest = 0;

    for (unsigned kind = all ? 0 : kind_of(kind_name); kind < N_RULES_KINDS; kind++) {
        double ms;

        prepare(kind, n_rules, seed);
        ms = build_ms();
        slowest = ms > slowest ? ms : slowest;
        fprintf(stderr, "%s-ms %.2f\n", rules_kinds[kind], ms);
        rules_destroy(rules);
        free(blob);
        if (!all)
            break;
    }
    printf("%.2f\n", slowest);
}

static void measure_compile(const char *n_rules)
{
    static struct guests vms;
    struct rules *g = rules_create(RULES_SG, (uint32_t)strtoul(n_rules, NULL, 0), 1);
    char *text = rules_text(g);
    double t[5];

    if (guests_add(&vms, "b,/run/bench/b.sock,02:00:00:00:00:02,10.0.0.2"))
        die("no such VM");
    fprintf(stderr, "text-bytes %zu\n", strlen(text));
    for (unsigned i = 0; i < 5; i++) {
        uint64_t from = __rdtsc();
        size_t len;
        uint8_t *made = guests_ruleset(&vms, 0, text, &len);

        t[i] = ms_of(__rdtsc() - from);
        if (!made)
            exit(1);
        free(made);
    }
    qsort(t, 5, sizeof *t, by_value);
    printf("%.2f\n", t[2]);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";

    if (!strcmp(mode, "compile") && argc == 3) {
        measure_compile(argv[2]);
        return 0;
    }
    if (!strcmp(mode, "flows") && argc >= 4 && argc <= 6) {
        prepare(kind_of(argv[2]), argv[3], argc > 4 ? argv[4] : NULL);
        measure_flows(argc > 5 ? argv[5] : NULL);
        return 0;
    }
    if (!strcmp(mode, "build") && argc >= 4 && argc <= 5) {
        measure_build(argv[2], argv[3], argc > 4 ? argv[4] : NULL);
        return 0;
    }
    die("usage: flows KIND RULES [SEED [PAIRS]] | build KIND|slowest RULES [SEED] | "
        "compile RULES");
}
