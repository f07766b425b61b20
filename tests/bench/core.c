/* SPDX-License-Identifier: Apache-2.0 */

/* The filter core alone, without a switch: packets from VM a to VM b of one host, judged
 * at both slots.
 *
 *   bench_core established udp|tcp CONNECTIONS   cycles per packet of live sessions, both slots
 *   bench_core new udp|tcp                       connections opened per second, both slots
 *   bench_core classify RULES                    nanoseconds per flow that meets the classifier
 *
 * Prints one number.  MOAT_BENCH_MAPPING: a file on a hugetlbfs for the tables, to be
 * removed by the caller. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/classify.h"
#include "datapath/engine.h"
#include "datapath/pipe.h"
#include "datapath/ruleset.h"
#include "datapath/slot.h"

#include "frames.h"
#include "guests.h"

struct bench {
    struct moat_engine *engine;
    struct moat_thread *self;
    struct moat_port *port[2];
    int tcp;
    uint32_t n_conns, next;
    uint64_t random;
    uint64_t refused;
    uint8_t frame[FRAME_BURST][64];
    struct moat_pkt pkts[FRAME_BURST];
};

static struct guests vms;

static void die(const char *what)
{
    fprintf(stderr, "bench_core: %s\n", what);
    exit(1);
}

static uint8_t *rules_of(unsigned vm, const char *policy, size_t *len)
{
    uint8_t *blob = guests_ruleset(&vms, vm, policy, len);

    if (!blob)
        exit(1);
    return blob;
}

static void start(struct bench *b, uint32_t n_sessions)
{
    static const char policy[] = "policy \"bench\" version 1\n"
                                 "tier bench {\n"
                                 "    allow from vm \"a\" to vm \"b\" service udp 1000-2000, tcp 1000-2000\n"
                                 "}\n";
    struct moat_engine_conf conf = {
        .mapping = getenv("MOAT_BENCH_MAPPING"), .n_slots = 4, .n_sessions = n_sessions};
    char err[256] = "";

    b->engine = moat_engine_create(&conf, err, sizeof err);
    if (!b->engine)
        die(err);
    b->self = moat_thread_self(b->engine);
    b->random = 88172645463325252u;
    for (unsigned i = 0; i < 2; i++) {
        size_t len;
        uint8_t *blob = rules_of(i, policy, &len);

        vms.conf[i].settings.max_sessions = n_sessions;
        b->port[i] = moat_port_register(b->engine, vms.conf[i].path);
        if (!b->port[i] || moat_slot_claim(b->engine, &vms.conf[i], err, sizeof err) ||
            moat_slot_publish(b->engine, vms.conf[i].vnic, blob, len, err, sizeof err))
            die(err);
        moat_port_connected(b->port[i], true);
        moat_port_started(b->port[i]);
        free(blob);
    }
}

static void take(struct bench *b, unsigned i)
{
    b->pkts[i].data = b->frame[i];
    b->pkts[i].len = b->pkts[i].total = FRAME;
}

/* The burst in b->frame through the sender's slot and the receiver's. */
static uint64_t judge(struct bench *b, int back, unsigned n)
{
    uint64_t t = __rdtsc();
    uint32_t ok;

    for (unsigned i = 0; i < n; i++)
        take(b, i);
    ok = moat_pipe_burst(b->self, b->port[back], MOAT_FROM_VM, b->pkts, n);
    for (unsigned i = 0; i < n; i++)
        take(b, i);
    ok &= moat_pipe_burst(b->self, b->port[!back], MOAT_TO_VM, b->pkts, n);
    t = __rdtsc() - t;
    b->refused += n - (unsigned)__builtin_popcount(ok);
    return t;
}

static void push(struct bench *b, uint32_t c, int back, uint8_t flags)
{
    frame_make(b->frame[0], b->tcp, c, back, flags);
    judge(b, back, 1);
}

static void open_all(struct bench *b)
{
    for (uint32_t c = 0; c < b->n_conns; c++) {
        push(b, c, 0, FRAME_SYN);
        push(b, c, 1, FRAME_SYN | FRAME_ACK);
        push(b, c, 0, FRAME_ACK);
    }
}

static uint64_t live_burst(void *b_)
{
    struct bench *b = b_;

    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(b->frame[i], b->tcp, next_random(&b->random) % b->n_conns, 0, FRAME_ACK);
    return judge(b, 0, FRAME_BURST);
}

static uint64_t new_burst(void *b_)
{
    struct bench *b = b_;

    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(b->frame[i], b->tcp, b->next++, 0, FRAME_SYN);
    return judge(b, 0, FRAME_BURST);
}

static void finish(const struct bench *b, uint32_t sessions, double result)
{
    uint32_t used = moat_session_table_used(b->engine->sessions);

    if (b->refused || used < sessions) {
        fprintf(stderr, "bench_core: %llu packets refused, %u sessions in place of %u\n",
                (unsigned long long)b->refused, used, sessions);
        exit(1);
    }
    printf("%.2f\n", result);
    moat_engine_destroy(b->engine);
}

static void established(int tcp, uint32_t n_conns)
{
    static struct bench b;
    uint32_t room = 1024;

    b.tcp = tcp;
    b.n_conns = n_conns;
    while (room < n_conns * 2 + 1024)
        room *= 2;
    start(&b, room);
    open_all(&b);
    median_of(live_burst, &b, 4); /* warm */
    finish(&b, n_conns * 2, median_of(live_burst, &b, CHUNK_BURSTS));
}

static void new_sessions(int tcp)
{
    static struct bench b;
    double cycles;

    b.tcp = tcp;
    start(&b, 1u << 20);
    cycles = median_of(new_burst, &b, 32);
    finish(&b, b.next * 2, tsc_hz() / cycles);
}

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

/* Rule r: one remote address, one port. */
static void classify(unsigned n_rules)
{
    static struct classify c = {.random = 88172645463325252u};
    size_t size = 256 + n_rules * 96u, at, len;
    char *policy = malloc(size), err[256] = "";
    uint8_t *blob;

    if (!policy || n_rules < 1 || n_rules > 5000)
        die("how many rules?");
    at = (size_t)snprintf(policy, size, "policy \"bench\" version 1\ntier bench {\n");
    for (unsigned r = 0; r < n_rules; r++)
        at += (size_t)snprintf(policy + at, size - at,
                               "    allow from addresses 10.1.%u.%u to vm \"b\" service %s %u\n", r >> 8,
                               r & 255, r & 1 ? "tcp" : "udp", 1000 + r % 500);
    snprintf(policy + at, size - at, "}\n");
    blob = rules_of(1, policy, &len);
    if (moat_ruleset_check(blob, len, err, sizeof err))
        die(err);
    c.n_rules = n_rules;
    c.rules = moat_ruleset_create(blob);
    if (!c.rules)
        die("no memory");
    median_of(classify_burst, &c, 4);
    printf("%.2f\n", median_of(classify_burst, &c, CHUNK_BURSTS) / tsc_hz() * 1e9);
    moat_ruleset_destroy(c.rules);
    free(blob);
    free(policy);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[1] : "";
    int tcp = argc > 2 && !strcmp(argv[2], "tcp");
    uint32_t n = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 0) : 0;

    if (guests_add(&vms, "a,/run/bench/a.sock,02:00:00:00:00:01,10.0.0.1") ||
        guests_add(&vms, "b,/run/bench/b.sock,02:00:00:00:00:02,10.0.0.2"))
        die("no such VMs");
    if (!strcmp(mode, "established") && n && n <= FRAMES_MAX_CONNS / 2)
        established(tcp, n);
    else if (!strcmp(mode, "new"))
        new_sessions(tcp);
    else if (!strcmp(mode, "classify"))
        classify((unsigned)strtoul(argv[2], NULL, 0));
    else
        die("usage: established udp|tcp CONNECTIONS | new udp|tcp | classify RULES");
    return 0;
}
