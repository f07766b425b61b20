/* SPDX-License-Identifier: Apache-2.0 */

/* The peer of bench_core: Open vSwitch's connection tracker, in-process.
 *
 *   bench_conntrack established udp|tcp CONNECTIONS   cycles per packet
 *   bench_conntrack new udp|tcp                       connections opened per second
 *
 * One conntrack_execute() per burst is what one ct() action costs, without the
 * recirculation through the flow tables that comes with it.  The packets' metadata are as
 * fresh as the datapath would have them: else the tracker takes a short cut over the
 * connection that it left there. */

#include <config.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conntrack.h"
#include "dp-packet.h"
#include "fatal-signal.h"
#include "timeval.h"

#include "frames.h"

struct bench {
    struct conntrack *ct;
    struct dp_packet_batch batch;
    struct dp_packet packet[FRAME_BURST];
    uint8_t frame[FRAME_BURST][64];
    int tcp;
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

static void push(struct bench *b, uint32_t c, int back, uint8_t flags)
{
    frame_make(b->frame[0], b->tcp, c, back, flags);
    judge(b, 1, true, CS_TRACKED);
}

static uint64_t live_burst(void *b_)
{
    struct bench *b = b_;

    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(b->frame[i], b->tcp, next_random(&b->random) % b->n_conns, 0, FRAME_ACK);
    return judge(b, FRAME_BURST, false, CS_ESTABLISHED);
}

/* As the flow tables would: ct() finds nothing, then ct(commit). */
static uint64_t new_burst(void *b_)
{
    struct bench *b = b_;
    uint64_t t;

    for (unsigned i = 0; i < FRAME_BURST; i++)
        frame_make(b->frame[i], b->tcp, b->next++, 0, FRAME_SYN);
    t = judge(b, FRAME_BURST, false, CS_NEW);
    return t + judge(b, FRAME_BURST, true, CS_NEW);
}

int main(int argc, char **argv)
{
    static struct bench b = {.random = 88172645463325252u};
    uint32_t have = 0;
    double result;

    b.tcp = argc > 2 && !strcmp(argv[2], "tcp");
    b.n_conns = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 0) : 0;
    if (argc < 3 || (!strcmp(argv[1], "established") &&
                     (!b.n_conns || b.n_conns > FRAMES_MAX_CONNS / 2))) {
        fprintf(stderr, "usage: bench_conntrack established udp|tcp CONNECTIONS | new udp|tcp\n");
        return 2;
    }
    fatal_signal_init();
    for (unsigned i = 0; i < FRAME_BURST; i++) {
        dp_packet_use_const(&b.packet[i], b.frame[i], FRAME);
        dp_packet_reset_offsets(&b.packet[i]);
    }
    b.ct = conntrack_init();
    conntrack_set_maxconns(b.ct, 4u << 20);
    if (!strcmp(argv[1], "established")) {
        for (uint32_t c = 0; c < b.n_conns; c++) {
            push(&b, c, 0, FRAME_SYN);
            push(&b, c, 1, FRAME_SYN | FRAME_ACK);
            push(&b, c, 0, FRAME_ACK);
        }
        median_of(live_burst, &b, 4);
        result = median_of(live_burst, &b, CHUNK_BURSTS);
    } else {
        double cycles = median_of(new_burst, &b, 32);

        result = tsc_hz() / cycles;
        b.n_conns = b.next;
    }
    conntrack_get_nconns(b.ct, &have);
    if (b.odd || have < b.n_conns) {
        fprintf(stderr, "bench_conntrack: %llu packets not tracked, %u connections in place of %u\n",
                (unsigned long long)b.odd, have, b.n_conns);
        return 1;
    }
    printf("%.2f\n", result);
    return 0;
}
