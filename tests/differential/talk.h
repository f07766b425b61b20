/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DIFFERENTIAL_TALK_H
#define DIFFERENTIAL_TALK_H 1

/* A conversation: the packets of one pair of ends in the order in which a tracker between
 * them sees them, made of a number and a seed alone.  Two simulated ends talk over a path
 * that loses, delays, doubles and reorders; an adversary adds packets of its own.  The
 * path delivers all that the tracker sees: the conversation is the same for all trackers. */

#include <stdbool.h>
#include <stdint.h>

#define TALK_PACKETS 96
#define TALK_BYTES (64u << 10)

enum who { CLIENT = 0, SERVER = 1 };

/* Where the VM is, and who may open. */
enum shape {
    CLIENT_IS_VM = 0, /* slot 0; the client only */
    SERVER_IS_VM = 1, /* slot 1; the client only */
    BOTH_MAY = 2,     /* the client is a VM, slot 2; either end */
    N_SHAPES
};

enum kind { K_TCP = 0, K_UDP = 1, K_ICMP = 2, K_ERROR = 3, K_OTHER = 4 };

/* What is wrong with the packet that an ICMP error quotes; bits. */
enum quote {
    Q_PORTS = 1,      /* ports or identifier of another session */
    Q_SEQ = 2,        /* TCP: a sequence number that was never sent */
    Q_SHORT = 4,      /* ends within the first 8 bytes behind the IP header, or in it */
    Q_LENGTH = 8,     /* its IP header says more than was ever sent */
    Q_TURNED = 16,    /* went the way that the error goes itself */
    Q_SOURCE = 32,    /* another source address */
    Q_ERROR = 64,     /* is an ICMP error itself */
    Q_FRAGMENT = 128, /* is a later fragment */
};

struct packet {
    uint8_t from; /* enum who */
    uint8_t kind;
    bool forged;  /* by the adversary */
    bool arrived; /* TCP: it was not lost behind the tracker */
    bool useful;  /* TCP: it told its receiver something when it arrived */
    bool router;  /* errors: comes from a router on the sender's side */
    /* TCP */
    uint8_t flags;
    uint8_t wscale; /* 0x80 | shift; 0: no option */
    bool sack_ok, stamps;
    uint8_t n_sack;
    uint16_t win;
    uint32_t seq, ack;
    uint32_t sack[2][2];
    /* all */
    uint16_t len; /* of the payload */
    /* ICMP */
    uint8_t type, code;
    uint16_t id;
    /* errors */
    int16_t quotes; /* number of the quoted packet; -1: one that never was */
    uint8_t wrong;  /* enum quote */
    /* where it is in the talk's bytes: an Ethernet frame */
    uint32_t at, size;
};

struct talk {
    uint64_t seed;
    uint32_t number;
    uint8_t family, proto, shape;
    uint16_t port[2]; /* of client and server; ICMP: port[0] is the identifier */
    uint8_t remote;   /* last byte of the address that is not a VM's */
    uint32_t isn[2];  /* for printing: numbers relative to the first ones */
    char plan[160];   /* what it is about */
    unsigned n;
    struct packet p[TALK_PACKETS];
    uint8_t *bytes; /* TALK_BYTES, the caller's */
    uint32_t used;
};

/* Fill in all but `bytes`, which must be set.  The same seed and number give the same talk
 * on every machine. */
void talk_tcp(struct talk *, uint64_t seed, uint32_t number);
void talk_other(struct talk *, uint64_t seed, uint32_t number);

/* The frame of packet i, with right checksums, its index in the IPv4 id or the IPv6 flow label
 * to be set by wire_mark().  False if the talk has no more room. */
bool wire_make(struct talk *, unsigned i);
void wire_mark(uint8_t *frame, uint32_t mark);
uint32_t wire_marked(const uint8_t *ip);

/* True if this end may open sessions. */
static inline bool may_open(const struct talk *t, unsigned from)
{
    return from == CLIENT || t->shape == BOTH_MAY;
}

/* True if this end is the VM. */
static inline bool is_vm(const struct talk *t, unsigned from)
{
    return (t->shape == SERVER_IS_VM) == (from == SERVER);
}

/* splitmix64 */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#endif /* tests/differential/talk.h */
