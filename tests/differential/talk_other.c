/* SPDX-License-Identifier: Apache-2.0 */

/* Conversations without a handshake (UDP, ICMP queries, another protocol), and ICMP errors
 * about their packets: honest ones and ones with something wrong. */

#include "talk.h"

#include <string.h>

struct maker {
    struct talk *t;
    uint64_t random;
};

static uint32_t rnd(struct maker *m, uint32_t n)
{
    return (uint32_t)((next_random(&m->random) >> 32) * n >> 32);
}

static bool one_in(struct maker *m, uint32_t n)
{
    return !rnd(m, n);
}

static void add(struct maker *m, const struct packet *p)
{
    struct talk *t = m->t;

    if (t->n == TALK_PACKETS)
        return;
    t->p[t->n] = *p;
    if (wire_make(t, t->n))
        t->n++;
}

static uint8_t query_type(const struct talk *t, bool stamp, bool reply)
{
    if (t->family == 6)
        return reply ? 129 : 128;
    if (stamp)
        return reply ? 14 : 13;
    return reply ? 0 : 8;
}

static void add_packet(struct maker *m, unsigned from, bool stamp)
{
    struct talk *t = m->t;
    struct packet p;

    memset(&p, 0, sizeof p);
    p.from = (uint8_t)from;
    p.quotes = -1;
    p.len = (uint16_t)(one_in(m, 4) ? 0 : rnd(m, 200));
    switch (t->proto) {
    case 17:
        p.kind = K_UDP;
        break;
    case 1:
    case 58:
        p.kind = K_ICMP;
        p.id = t->port[0];
        p.type = query_type(t, stamp, from == SERVER ? !one_in(m, 12) : one_in(m, 12));
        p.len = (uint16_t)(stamp ? 12 : p.len);
        if (one_in(m, 15)) { /* another identifier */
            p.id ^= 0x1000;
            p.forged = true;
        }
        if (one_in(m, 40)) {
            p.code = (uint8_t)(1 + rnd(m, 3));
            p.forged = true;
        }
        break;
    default:
        p.kind = K_OTHER;
    }
    add(m, &p);
}

/* Types and codes of errors, and some that are none. */
static void set_type(struct maker *m, struct packet *p)
{
    static const uint8_t v4[][2] = {{3, 1},  {3, 3},  {3, 4}, {3, 13}, {11, 0},
                                    {11, 1}, {12, 0}, {3, 0}, {4, 0},  {5, 1}};
    static const uint8_t v6[][2] = {{1, 0}, {1, 1}, {1, 4}, {2, 0}, {3, 0}, {3, 1}, {4, 1}, {4, 0}};
    const uint8_t *type = m->t->family == 4 ? v4[rnd(m, sizeof v4 / 2)] : v6[rnd(m, sizeof v6 / 2)];

    p->type = type[0];
    p->code = type[1];
}

/* An error about packet i of the talk, or about one that never was. */
static void add_error(struct maker *m, int i)
{
    static const uint8_t wrongs[] = {Q_PORTS,  Q_SEQ,    Q_SHORT, Q_LENGTH,
                                     Q_TURNED, Q_SOURCE, Q_ERROR, Q_FRAGMENT};
    struct talk *t = m->t;
    struct packet p;

    memset(&p, 0, sizeof p);
    p.kind = K_ERROR;
    p.quotes = (int16_t)i;
    p.from = i < 0 ? (uint8_t)rnd(m, 2) : !t->p[i].from;
    p.forged = i < 0;
    p.router = !is_vm(t, p.from) && one_in(m, 2);
    set_type(m, &p);
    p.len = (uint16_t)(t->family == 4 && one_in(m, 2) ? 8 : 8 + rnd(m, 500));
    if (one_in(m, 2)) {
        p.wrong = wrongs[rnd(m, sizeof wrongs)];
        p.forged = true;
        if (p.wrong == Q_SHORT)
            p.len = (uint16_t)rnd(m, (t->family == 4 ? 20 : 40) + 8);
        if (p.wrong == Q_SEQ && t->proto != 6)
            p.wrong = 0;
        if (p.wrong == Q_PORTS && t->proto != 6 && t->proto != 17 && t->proto != 1 &&
            t->proto != 58)
            p.wrong = 0;
        if (p.wrong == Q_FRAGMENT && t->family == 6)
            p.wrong = 0;
    }
    add(m, &p);
}

/* --- TCP, as far as errors need it --- */

static void add_segment(struct maker *m, unsigned from, uint8_t flags, uint32_t seq, uint32_t ack,
                        uint16_t len)
{
    struct packet p;

    memset(&p, 0, sizeof p);
    p.kind = K_TCP;
    p.from = (uint8_t)from;
    p.quotes = -1;
    p.flags = flags;
    p.seq = m->t->isn[from] + seq;
    p.ack = flags & 16 ? m->t->isn[!from] + ack : 0;
    p.len = len;
    p.win = 60000;
    add(m, &p);
}

static void tcp_with_errors(struct maker *m)
{
    struct talk *t = m->t;
    unsigned len = 1 + rnd(m, 1400);

    t->isn[0] = (uint32_t)next_random(&m->random);
    t->isn[1] = (uint32_t)next_random(&m->random);
    add_segment(m, CLIENT, 2, 0, 0, 0);
    if (one_in(m, 2))
        add_error(m, 0);
    add_segment(m, SERVER, 18, 0, 1, 0);
    if (one_in(m, 3))
        add_error(m, (int)t->n - 1);
    add_segment(m, CLIENT, 16, 1, 1, 0);
    add_segment(m, CLIENT, 24, 1, 1, (uint16_t)len);
    add_error(m, (int)t->n - 1);
    add_segment(m, SERVER, 24, 1, 1 + len, 700);
    add_error(m, (int)t->n - 1);
    if (one_in(m, 3))
        add_error(m, -1);
    add_segment(m, CLIENT, 16, 1 + len, 701, 0);
}

/* --- all --- */

static void exchange(struct maker *m)
{
    struct talk *t = m->t;
    unsigned n = 1 + rnd(m, 12), first = one_in(m, 10) ? SERVER : CLIENT;
    bool stamp = t->family == 4 && one_in(m, 3);

    for (unsigned i = 0; i < n; i++) {
        if (i && one_in(m, 4)) {
            int about = (int)rnd(m, t->n);

            add_error(m, one_in(m, 10) || t->p[about].kind == K_ERROR ? -1 : about);
        } else {
            add_packet(m, i ? rnd(m, 2) : first, stamp);
        }
    }
}

void talk_other(struct talk *t, uint64_t seed, uint32_t number)
{
    static const char *const plans[] = {"UDP", "ICMP", "another protocol", "TCP with ICMP errors"};
    struct maker m = {.t = t, .random = seed ^ (uint64_t)number << 20 ^ 0xabcdef};
    uint8_t *bytes = t->bytes;
    unsigned plan;

    memset(t, 0, sizeof *t);
    t->bytes = bytes;
    t->seed = seed;
    t->number = number;
    next_random(&m.random);
    t->family = one_in(&m, 2) ? 6 : 4;
    t->shape = (uint8_t)rnd(&m, N_SHAPES);
    t->port[CLIENT] = (uint16_t)(20000 + number % 40000);
    t->port[SERVER] = (uint16_t)(1000 + rnd(&m, 400));
    t->remote = (uint8_t)(1 + number % 200);
    plan = one_in(&m, 12) ? 2 : one_in(&m, 3) ? 3 : rnd(&m, 2);
    strcpy(t->plan, plans[plan]);
    switch (plan) {
    case 0:
        t->proto = 17;
        break;
    case 1:
        t->proto = t->family == 4 ? 1 : 58;
        break;
    case 2:
        t->proto = (uint8_t)(144 + number / 200 % 100);
        break;
    default:
        t->proto = 6;
        tcp_with_errors(&m);
        return;
    }
    exchange(&m);
}
