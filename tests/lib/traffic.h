/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_TESTS_TRAFFIC_H
#define MOAT_TESTS_TRAFFIC_H 1

/* Packets of many conversations between the VMs of a rig and somebody outside: TCP from
 * SYN to TIME-WAIT with loss, reordering, retransmissions, windows and resets good and bad,
 * reused ports; UDP, echo, other protocols, datagrams in fragments, ICMP errors that quote
 * what was sent, ARP, neighbour discovery, DHCP, RARP; tags, trains of one direction,
 * packets in segments, and anything with a few bytes changed.
 *
 * It does not look at verdicts: the same choices make the same packets whatever the filter
 * says.  Choices come from a seed or from a fuzzer's bytes (choice.h). */

#include "tests/lib/choice.h"
#include "tests/lib/packet.h"
#include "tests/lib/rig.h"

#define TRAFFIC_CONVS_MAX 512
#define TRAFFIC_OUTSIDE RIG_SLOTS /* an end that is no VM */
#define TRAFFIC_ENDS (RIG_SLOTS + 1)

struct traffic_conv {
    uint8_t kind, family, end[2]; /* end[0] called */
    uint8_t stage, closed;        /* TCP: bit d: end d has sent its FIN */
    uint8_t proto;
    uint16_t vlan;
    uint16_t port[2];   /* echo: identifier in port[0] */
    uint32_t next[2];   /* TCP: what end d sends next */
    uint32_t id, at;    /* fragments: of the datagram; where the next piece begins */
    unsigned pauses;    /* fragments: how many there had been when the datagram began */
    uint8_t quote[160]; /* the last packet's beginning, from its IP header on */
    uint32_t quote_len;
    uint8_t quote_dir; /* who sent it; 2: nobody yet */
};

struct traffic {
    struct choice *choice;
    unsigned n_convs;
    struct traffic_conv convs[TRAFFIC_CONVS_MAX];
    unsigned train, train_conv, train_dir; /* packets left of a train */
    uint16_t serial;                       /* of conversations */
    unsigned pauses;                       /* so far, of more than a second */
};

struct traffic_pkt {
    struct frame f;
    uint32_t len, total; /* as in struct moat_pkt */
    uint8_t from, to;    /* ends */
    uint32_t wait_ms;    /* before it */
};

/* Fewer conversations meet more often. */
void traffic_init(struct traffic *, struct choice *, unsigned n_convs);

void traffic_next(struct traffic *, struct traffic_pkt *);

#endif /* tests/lib/traffic.h */
