/* SPDX-License-Identifier: Apache-2.0 */

/* The peer of bench_core: Open vSwitch's connection tracker, in-process.
 *
 *   bench_conntrack established udp|tcp CONNECTIONS   cycles per packet, one way
 *   bench_conntrack one-slot udp|tcp CONNECTIONS      the same, a burst each way by turns
 *   bench_conntrack new udp|tcp                       connections opened per second: ct(), then
 *                                                     ct(commit)
 *   bench_conntrack insert udp                        the same, ct(commit) alone
 *   bench_conntrack memory udp                        bytes of heap a connection
 *
 * One conntrack_execute() per burst is what one ct() action costs, without the
 * recirculation through the flow tables that comes with it.  The packets' metadata are as
 * fresh as the datapath would have them: else the tracker takes a short cut over the
 * connection that it left there. */

#include <config.h>

#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conntrack.h"
#include "dp-packet.h"
#include "fatal-signal.h"
#include "timeval.h"

#include "frames.h"
#include "timing.h"

#define MEMORY_CONNS (1u << 20)

struct bench {
    struct conntrack *ct;
    struct dp_packet_batch batch;
    struct dp_packet packet[FRAME_BURST];
    uint8_t frame[FRAME_BURST][FRAME_ROOM];
    int tcp, back;
    uint32_t n_conns, next;
    uint64_t random;
    uint64_t odd; /* packets that are not in the state they should be in */
};

static void take(struct bench *b, unsigned i)
{
    struct dp_packet *p = &b->packet[i];

    pkt_metadata_init(&p->md, 1);
    pkt_metadata_init_conn(&p->md);
    dp_packet_set_l3(p, b->frame[i] + 14);
    dp_packet_set_l4(p, b->frame[i] + 34);
    if (b->tcp)
        dp_packet_set_l2_pad_size(p, FRAME - 54);
    dp_packet_batch_add(&b->batch, p);
}

static uint64_t judge(struct bench *b, unsigned n, bool commit, uint8_t want)
{
    long long now = time_msec();
    uint64_t t;

    dp_packet_batch_init(&b->batch);
    for (unsigned i = 0; i < n; i++)
        take(b, i);
    t = __rdtsc();
    conntrack_execute(b->ct, &b->batch, htons(0x0800), false, commit, 0, NULL, NULL, 0, 0, NULL,
                      NULL, now, 0);
    t = __rdtsc() - t;
    for (unsigned i = 0; i < n; i++)
        b->odd += (b->packet[i].md.ct_state & want) != want;
    return t;
}

static void open_all(struct bench *b)
{
    static const struct {
        int back;
        uint8_t flags;
    } step[] = {{0, FRAME_SYN}, {1, FRAME_SYN | FRAME_ACK}, {0, FRAME_ACK}};

    for (uint32_t c = 0; c < b->n_conns; c += FRAME_BURST) {
        unsigned n = b->n_conns - c < FRAME_BURST ? b->n_conns - c : FRAME_BURST;

        for (unsigned s = 0; s < 3; s++) {
            for (unsigned i = 0; i < n; i++)
                frame_make(b->frame[i], b->tcp, c + i, step[s].back, step[s].flags);
            judge(b, n, true, CS_TRACKED);
        }
    }
}

static uint64_t live_burst(void *b_)
{
    struct bench *b = b_;

    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(b->frame[i], b->tcp, next_random(&b->random) % b->n_conns, b->back, FRAME_ACK);
    return judge(b, FRAME_BURST, false, CS_ESTABLISHED);
}

static uint64_t both_ways_burst(void *b_)
{
    struct bench *b = b_;
    uint64_t t = live_burst(b);

    b->back = !b->back;
    return t;
}

static void make_new(struct bench *b)
{
    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(b->frame[i], b->tcp, b->next++, 0, FRAME_SYN);
}

/* As the flow tables would: ct() finds nothing, then ct(commit). */
static uint64_t new_burst(void *b_)
{
    struct bench *b = b_;
    uint64_t t;

    make_new(b);
    t = judge(b, FRAME_BURST, false, CS_NEW);
    return t + judge(b, FRAME_BURST, true, CS_NEW);
}

static uint64_t insert_burst(void *b_)
{
    make_new(b_);
    return judge(b_, FRAME_BURST, true, CS_NEW);
}

static double live(struct bench *b, uint64_t (*burst)(void *))
{
    open_all(b);
    median_of(burst, b, 4);
    return median_of(burst, b, CHUNK_BURSTS);
}

static double opening(struct bench *b, uint64_t (*burst)(void *))
{
    double cycles = median_of(burst, b, 32);

    b->n_conns = b->next;
    return tsc_hz() / cycles;
}

static double memory(struct bench *b)
{
    struct mallinfo2 before = mallinfo2(), after;

    for (unsigned i = 0; i < MEMORY_CONNS / FRAME_BURST; i++)
        insert_burst(b);
    b->n_conns = b->next;
    after = mallinfo2();
    return (double)(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd) / b->next;
}

static double run(struct bench *b, const char *mode)
{
    if (!strcmp(mode, "established"))
        return live(b, live_burst);
    if (!strcmp(mode, "one-slot"))
        return live(b, both_ways_burst);
    if (!strcmp(mode, "new"))
        return opening(b, new_burst);
    if (!strcmp(mode, "insert"))
        return opening(b, insert_burst);
    if (!strcmp(mode, "memory"))
        return memory(b);
    fprintf(stderr,
            "usage: bench_conntrack established|one-slot udp|tcp CONNECTIONS | new udp|tcp | "
            "insert udp | memory udp\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static struct bench b = {.random = 88172645463325252u};
    const char *mode = argc > 2 ? argv[1] : "";
    uint32_t have = 0;
    double result;

    b.tcp = argc > 2 && !strcmp(argv[2], "tcp");
    b.n_conns = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 0) : 1;
    if (!b.n_conns || b.n_conns > FRAMES_MAX_CONNS)
        mode = "";
    fatal_signal_init();
    for (unsigned i = 0; i < FRAME_BURST; i++) {
        dp_packet_use_const(&b.packet[i], b.frame[i], FRAME);
        dp_packet_reset_offsets(&b.packet[i]);
    }
    b.ct = conntrack_init();
    conntrack_set_maxconns(b.ct, 4u << 20);
    result = run(&b, mode);
    conntrack_get_nconns(b.ct, &have);
    if (b.odd || have < b.n_conns) {
        fprintf(stderr,
                "bench_conntrack: %llu packets not tracked, %u connections in place of %u\n",
                (unsigned long long)b.odd, have, b.n_conns);
        return 1;
    }
    printf("%.2f\n", result);
    return 0;
}
