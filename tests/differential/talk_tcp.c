/* SPDX-License-Identifier: Apache-2.0 */

/* TCP: two ends by RFC 9293 with the challenges of RFC 5961, of the sort that live in the
 * field (some forget, some break rules), a bad path, and an adversary who knows the
 * numbers or does not.
 *
 * A packet is in the air twice: before the tracker and behind it.  It is written down when
 * it passes the tracker.  The tracker is beside the VM: what that sends comes there whole and
 * in order. */

#include "talk.h"

#include <stdio.h>
#include <string.h>

#include "datapath/parse.h"

#define FIN MOAT_TCP_FIN
#define SYN MOAT_TCP_SYN
#define RST MOAT_TCP_RST
#define PSH MOAT_TCP_PSH
#define ACK MOAT_TCP_ACK
#define URG MOAT_TCP_URG

#define MAX_AIR 48
#define N_EARLY 3

enum state { CLOSED, LISTEN, SYN_SENT, SYN_RCVD, OPEN };

struct end {
    enum state state;
    uint32_t iss, una, nxt, max; /* sent: first, unacknowledged, next, highest */
    uint32_t edge;               /* how far the peer lets it send */
    uint32_t stop;               /* where its FIN is */
    uint32_t rcv, shown;         /* received in order; right edge shown to the peer */
    uint32_t buffer, unread;
    uint32_t fin; /* where the peer's is, if fin_known */
    uint32_t early[N_EARLY][2];
    uint32_t timer;
    uint8_t scale, peers_scale; /* in use */
    uint8_t offer;
    bool fin_known, fin_taken, owes, closes, sack;
};

/* What happens beside the exchange of data; times in ticks, 0: never. */
struct script {
    unsigned loss, doubled, spread; /* percent, percent, ticks */
    unsigned abort_at[2], reboot_at[2], call_again_at;
    unsigned forge;    /* percent of the ticks */
    bool blind;        /* the adversary does not know the numbers */
    bool simultaneous; /* the server calls too */
    bool fresh_isn;    /* every SYN has another number */
    bool cookies;      /* every SYN|ACK may have another number */
    bool early_data;   /* in the SYN */
    bool keepalive, greedy /* FIN without room */, shrinks, slow, urgent, stamps;
    bool no_server;  /* the server's port is closed */
    bool older;      /* the server still has an older connection */
    bool flips_acks; /* an end acknowledges old things now and then */
};

struct air {
    struct packet p;
    uint32_t due;
    int seen; /* its number, once the tracker has seen it; before: -1 */
};

struct sim {
    struct talk *t;
    uint64_t random;
    struct end end[2];
    struct script s;
    struct air air[MAX_AIR];
    unsigned n_air;
    uint32_t now;
};

static uint32_t rnd(struct sim *m, uint32_t n)
{
    return (uint32_t)((next_random(&m->random) >> 32) * n >> 32);
}

static bool one_in(struct sim *m, uint32_t n)
{
    return !rnd(m, n);
}

static uint32_t rnd32(struct sim *m)
{
    return (uint32_t)(next_random(&m->random) >> 32);
}

static bool before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

/* --- the path --- */

static void put(struct sim *m, const struct packet *p, int seen)
{
    struct air *a = &m->air[m->n_air];
    bool direct = seen < 0 && is_vm(m->t, p->from);

    if (m->n_air == MAX_AIR || (!direct && rnd(m, 100) < m->s.loss))
        return;
    a->p = *p;
    a->seen = seen;
    a->due = m->now + 1 + (!direct && one_in(m, 4) ? rnd(m, m->s.spread) : 0);
    m->n_air++;
    if (!direct && rnd(m, 100) < m->s.doubled)
        put(m, p, seen);
}

static struct packet blank(struct sim *m, unsigned from)
{
    struct packet p;

    memset(&p, 0, sizeof p);
    p.from = (uint8_t)from;
    p.kind = K_TCP;
    p.stamps = m->s.stamps;
    p.quotes = -1;
    return p;
}

/* --- sending --- */

static void add_sack(struct end *e, struct packet *p)
{
    for (unsigned i = 0; i < N_EARLY && p->n_sack < 2; i++) {
        if (e->early[i][0] == e->early[i][1])
            continue;
        memcpy(p->sack[p->n_sack++], e->early[i], sizeof p->sack[0]);
    }
}

static uint16_t window(struct sim *m, struct end *e, bool syn)
{
    uint8_t scale = syn ? 0 : e->scale;
    uint32_t room = (e->buffer - e->unread) >> scale << scale, win;

    if (m->s.shrinks && one_in(m, 4))
        room /= 2;
    else if (before(e->shown, e->rcv + room))
        e->shown = e->rcv + room;
    win = m->s.shrinks ? room >> scale : (e->shown - e->rcv) >> scale;
    if (win > UINT16_MAX) {
        win = UINT16_MAX;
        e->shown = e->rcv + (win << scale);
    }
    return (uint16_t)win;
}

static void send(struct sim *m, unsigned d, uint8_t flags, uint32_t seq, uint32_t len)
{
    struct end *e = &m->end[d];
    struct packet p = blank(m, d);
    uint32_t end = seq + len + !!(flags & SYN) + !!(flags & FIN);

    p.flags = flags;
    p.seq = seq;
    p.len = (uint16_t)len;
    if (flags & ACK)
        p.ack = e->rcv;
    if (flags & ACK && m->s.flips_acks && one_in(m, 6))
        p.ack -= rnd(m, 3000);
    if (m->s.urgent && len && one_in(m, 4))
        p.flags |= one_in(m, 2) ? URG : PSH | URG;
    if (len && one_in(m, 3))
        p.flags |= PSH;
    p.win = window(m, e, flags & SYN);
    if (flags & SYN) {
        p.wscale = e->offer;
        p.sack_ok = e->sack;
    } else if (e->sack) {
        add_sack(e, &p);
    }
    if (before(e->max, end))
        e->max = end;
    e->owes = false;
    put(m, &p, -1);
}

static void send_rst(struct sim *m, unsigned d, uint32_t seq, bool acks, uint32_t ack)
{
    struct packet p = blank(m, d);

    p.flags = acks ? RST | ACK : RST;
    p.seq = seq;
    p.ack = acks ? ack : 0;
    p.stamps = false;
    put(m, &p, -1);
}

static void send_syn(struct sim *m, unsigned d)
{
    struct end *e = &m->end[d];
    bool answer = e->state == SYN_RCVD;
    uint32_t data = 0;

    if (!answer && m->s.early_data && !one_in(m, 3) && e->stop != e->iss + 1)
        data = 1 + rnd(m, e->stop - e->iss - 1 < 1000 ? e->stop - e->iss - 1 : 1000);
    send(m, d, answer ? SYN | ACK : SYN, e->iss, data);
    if (before(e->nxt, e->iss + 1 + data))
        e->nxt = e->iss + 1 + data;
    e->timer = m->now + 15 + rnd(m, 15);
}

/* Data from seq on, as far as the window goes, with the FIN if it is time. */
static bool send_data(struct sim *m, unsigned d, uint32_t seq)
{
    struct end *e = &m->end[d];
    uint32_t room = before(seq, e->edge) ? e->edge - seq : 0, len;
    bool last;

    if (before(e->stop, seq))
        return false;
    len = e->stop - seq;
    len = len < room ? len : room;
    if (len > (one_in(m, 40) ? 9000 : 1460))
        len = 1460;
    if (len > 1 && one_in(m, 3))
        len = 1 + rnd(m, len);
    last = e->closes && seq + len == e->stop && (len < room || m->s.greedy);
    if (!len && !last)
        return false;
    send(m, d, last ? FIN | ACK : ACK, seq, len);
    if (before(e->nxt, seq + len + last))
        e->nxt = seq + len + last;
    return true;
}

static void send_probe(struct sim *m, unsigned d)
{
    struct end *e = &m->end[d];

    if (e->una == e->edge && before(e->una, e->stop) && one_in(m, 2)) {
        send(m, d, ACK, e->una, 1); /* a byte beyond a closed window */
        if (e->nxt == e->una)
            e->nxt++;
    } else {
        send(m, d, ACK, e->una - 1, one_in(m, 3));
    }
}

static void start_timer(struct sim *m, struct end *e)
{
    e->timer = m->now + 15 + rnd(m, 15);
}

static void act(struct sim *m, unsigned d)
{
    struct end *e = &m->end[d];

    if (e->unread && one_in(m, m->s.slow ? 20 : 2)) {
        e->unread -= 1 + rnd(m, e->unread);
        e->owes |= e->state == OPEN && one_in(m, 3);
    }
    if (e->state == SYN_SENT || e->state == SYN_RCVD) {
        if (m->now >= e->timer)
            send_syn(m, d);
        return;
    }
    if (e->state != OPEN)
        return;
    if (!one_in(m, 3) && send_data(m, d, e->nxt)) {
        start_timer(m, e);
    } else if (m->now >= e->timer) {
        if (e->una != e->max) {
            if (!send_data(m, d, e->una))
                send_probe(m, d);
        } else if (m->s.keepalive || before(e->una, e->stop)) {
            send_probe(m, d);
        }
        start_timer(m, e);
    } else if (e->owes && one_in(m, 2)) {
        send(m, d, ACK, e->nxt, 0);
    }
}

/* --- opening --- */

static void reset_end(struct sim *m, unsigned d, enum state state)
{
    struct end *e = &m->end[d];
    uint32_t was = e->max;
    unsigned bits = 8 + rnd(m, 12);

    memset(e, 0, sizeof *e);
    e->state = state;
    switch (rnd(m, 4)) {
    case 0:
        e->iss = was + 1 + rnd(m, 100000);
        break;
    case 1:
        e->iss = was - rnd(m, 100000);
        break;
    default:
        e->iss = rnd32(m);
    }
    e->una = e->nxt = e->max = e->iss;
    e->buffer = (1u << bits) + rnd(m, 1u << bits);
    e->offer = one_in(m, 4) ? 0 : (uint8_t)(0x80 | (one_in(m, 2) ? rnd(m, 15) : rnd(m, 9)));
    e->sack = !one_in(m, 3);
    e->stop = e->iss + 1 + (one_in(m, 4) ? 0 : rnd(m, one_in(m, 4) ? 20000 : 2500));
    e->closes = !one_in(m, 5);
}

static void call(struct sim *m, unsigned d)
{
    reset_end(m, d, SYN_SENT);
}

static void take_syn(struct sim *m, unsigned d, const struct packet *p)
{
    struct end *e = &m->end[d];

    e->rcv = e->shown = p->seq + 1;
    e->edge = e->iss + 1 + p->win;
    e->scale = e->offer & p->wscale & 0x80 ? e->offer & 15 : 0;
    e->peers_scale = e->offer & p->wscale & 0x80 ? p->wscale & 15 : 0;
    e->sack = e->sack && p->sack_ok;
    e->owes = true;
    if (p->len && m->s.early_data && one_in(m, 2)) {
        e->rcv += p->len;
        e->shown = e->rcv;
    }
}

/* --- receiving --- */

static void store(struct sim *m, struct end *e, uint32_t from, uint32_t to)
{
    uint32_t was = e->rcv;
    bool again = true;

    if (before(e->shown, to))
        to = e->shown;
    if (!before(from, to))
        return;
    if (before(e->rcv, from)) {
        unsigned i = rnd(m, N_EARLY);

        if (e->early[i][0] == e->early[i][1]) {
            e->early[i][0] = from;
            e->early[i][1] = to;
        }
        return;
    }
    if (before(e->rcv, to))
        e->rcv = to;
    while (again) {
        again = false;
        for (unsigned i = 0; i < N_EARLY; i++) {
            if (e->early[i][0] == e->early[i][1] || before(e->rcv, e->early[i][0]))
                continue;
            if (before(e->rcv, e->early[i][1])) {
                e->rcv = e->early[i][1];
                again = true;
            }
            e->early[i][0] = e->early[i][1];
        }
    }
    e->unread += e->rcv - was;
    if (e->unread > e->buffer)
        e->unread = e->buffer;
}

static void answer_closed(struct sim *m, unsigned d, const struct packet *p)
{
    if (p->flags & RST)
        return;
    if (p->flags & ACK)
        send_rst(m, d, p->ack, false, 0);
    else
        send_rst(m, d, 0, true, p->seq + p->len + !!(p->flags & SYN));
}

static void answer_listening(struct sim *m, unsigned d, const struct packet *p)
{
    if (p->flags & RST)
        return;
    if (p->flags & ACK) {
        send_rst(m, d, p->ack, false, 0);
    } else if (p->flags & SYN) {
        reset_end(m, d, SYN_RCVD);
        take_syn(m, d, p);
    }
}

static void receive_calling(struct sim *m, unsigned d, const struct packet *p)
{
    struct end *e = &m->end[d];
    bool acks = p->flags & ACK && before(e->iss, p->ack) && !before(e->max, p->ack);

    if (p->flags & ACK && !acks) {
        if (!(p->flags & RST))
            send_rst(m, d, p->ack, false, 0);
        return;
    }
    if (p->flags & RST) {
        if (acks)
            e->state = CLOSED;
        return;
    }
    if (!(p->flags & SYN))
        return;
    take_syn(m, d, p);
    e->timer = m->now;
    if (!acks) {
        e->state = SYN_RCVD;
        return;
    }
    e->una = e->nxt = p->ack;
    e->edge = p->ack + p->win;
    e->state = OPEN;
    start_timer(m, e);
}

static bool is_waiting(const struct end *e)
{
    return e->fin_taken && e->una == e->stop + 1;
}

/* RFC 9293, 3.10.7.4, first checks.  True if the segment goes on. */
static bool acceptable(struct sim *m, unsigned d, const struct packet *p)
{
    struct end *e = &m->end[d];
    uint32_t room = e->shown - e->rcv, len = p->len + !!(p->flags & FIN);
    bool in_window = !before(p->seq, e->rcv) && !before(e->rcv + (room ? room : 1) - 1, p->seq);
    bool overlaps = before(e->rcv, p->seq + len) && before(p->seq, e->rcv + room);

    if (p->flags & RST) {
        if (p->seq == e->rcv)
            e->state = CLOSED;
        else if (in_window)
            send(m, d, ACK, e->nxt, 0);
        return false;
    }
    if (p->flags & SYN) {
        if (is_waiting(e) && before(e->rcv, p->seq) && !(p->flags & ACK) && d == SERVER) {
            answer_listening(m, d, p);
        } else if (e->state == SYN_RCVD && p->seq + 1 == e->rcv) {
            if (m->s.cookies && one_in(m, 2) && !(p->flags & ACK)) {
                reset_end(m, d, SYN_RCVD);
                take_syn(m, d, p);
            }
            e->timer = m->now;
            if (p->flags & ACK && p->ack == e->iss + 1) {
                e->una = e->nxt = p->ack; /* the second half of a simultaneous open */
                e->state = OPEN;
            }
        } else {
            send(m, d, ACK, e->nxt, 0);
        }
        return false;
    }
    if (len ? overlaps : in_window)
        return true;
    if (p->flags & ACK)
        send(m, d, ACK, e->nxt, 0);
    return false;
}

static void receive_in_order(struct sim *m, unsigned d, const struct packet *p)
{
    struct end *e = &m->end[d];
    uint32_t end = p->seq + p->len;

    if (!(p->flags & ACK))
        return;
    if (before(e->max, p->ack) || before(p->ack, e->una - 70000)) {
        if (e->state == SYN_RCVD)
            send_rst(m, d, p->ack, false, 0);
        else
            send(m, d, ACK, e->nxt, 0);
        return;
    }
    if (e->state == SYN_RCVD) {
        if (!before(e->iss, p->ack))
            return;
        e->state = OPEN;
        start_timer(m, e);
    }
    if (before(e->una, p->ack)) {
        e->una = p->ack;
        if (before(e->nxt, e->una))
            e->nxt = e->una;
        start_timer(m, e);
    }
    if (before(e->edge, p->ack + ((uint32_t)p->win << e->peers_scale)))
        e->edge = p->ack + ((uint32_t)p->win << e->peers_scale);
    if (p->len || p->flags & FIN)
        e->owes = true;
    store(m, e, p->seq, end);
    if (p->flags & FIN && !e->fin_known) {
        e->fin = end;
        e->fin_known = true;
    }
    if (e->fin_known && !e->fin_taken && e->rcv == e->fin) {
        e->rcv++;
        e->fin_taken = true;
        e->closes = true;
        if (before(e->shown, e->rcv))
            e->shown = e->rcv;
        if (before(e->nxt, e->stop) && one_in(m, 3))
            e->stop = e->nxt; /* it has no more to say */
    }
}

static void receive(struct sim *m, const struct packet *p)
{
    unsigned d = !p->from;

    switch (m->end[d].state) {
    case CLOSED:
        answer_closed(m, d, p);
        break;
    case LISTEN:
        answer_listening(m, d, p);
        break;
    case SYN_SENT:
        receive_calling(m, d, p);
        break;
    case SYN_RCVD:
    case OPEN:
        if (acceptable(m, d, p))
            receive_in_order(m, d, p);
        break;
    }
}

/* Whether the receiver knows more afterwards: of this one, or of the stream. */
static void deliver(struct sim *m, const struct air *a)
{
    struct end *e = &m->end[!a->p.from], was = *e;

    receive(m, &a->p);
    m->t->p[a->seen].arrived = true;
    if (e->state != was.state || e->iss != was.iss || e->una != was.una || e->edge != was.edge ||
        e->rcv != was.rcv || e->fin_known != was.fin_known ||
        memcmp(e->early, was.early, sizeof was.early))
        m->t->p[a->seen].useful = true;
}

/* --- the adversary --- */

static uint32_t offset(struct sim *m, const struct end *a, const struct end *b)
{
    uint32_t wa = a->shown - a->rcv, wb = b->shown - b->rcv;
    const uint32_t edges[] = {0,        1,
                              2,        wa,
                              wa + 1,   wb,
                              wb + 1,   65535,
                              66000,    66001,
                              67035,    a->buffer,
                              100,      100000,
                              1460,     1u << 20,
                              1u << 30, 1u << 31,
                              10,       wa - 1,
                              wb - 1,   a->buffer + 1,
                              b->buffer};
    uint32_t off = edges[rnd(m, sizeof edges / sizeof *edges)];

    if (m->s.blind)
        return rnd32(m);
    if (one_in(m, 3))
        return 0;
    return one_in(m, 2) ? off : -off;
}

static void forge(struct sim *m)
{
    static const uint8_t usual[] = {ACK,       ACK, ACK, FIN | ACK, RST,       RST,
                                    RST | ACK, SYN, SYN, SYN | ACK, PSH | ACK, URG | ACK};
    unsigned d = rnd(m, 2);
    struct end *e = &m->end[d], *o = &m->end[!d];
    const uint32_t seqs[] = {e->nxt,   e->max, e->una, e->edge, o->rcv,
                             o->shown, e->iss, e->max, o->rcv};
    const uint32_t acks[] = {o->nxt, o->max, o->una, e->rcv, e->rcv, o->iss, o->iss + 1, e->rcv};
    const uint16_t lens[] = {0, 0, 0, 0, 1, 1, 2, 10, 500, 1460, 4000};
    struct packet p = blank(m, d);

    p.forged = true;
    p.flags = one_in(m, 8) ? (uint8_t)rnd(m, 64) : usual[rnd(m, sizeof usual)];
    p.seq = seqs[rnd(m, sizeof seqs / sizeof *seqs)] + offset(m, e, o);
    if (p.flags & ACK || one_in(m, 10))
        p.ack = acks[rnd(m, sizeof acks / sizeof *acks)] + offset(m, o, e);
    if (one_in(m, 30))
        p.seq = p.ack = 0;
    p.len = lens[rnd(m, sizeof lens / sizeof *lens)];
    p.win = (uint16_t)(one_in(m, 3) ? rnd(m, 65536) : one_in(m, 2) ? 0 : 65535 - rnd(m, 3));
    if (p.flags & SYN) {
        p.wscale = one_in(m, 2) ? 0 : (uint8_t)(0x80 | rnd(m, 15));
        p.sack_ok = one_in(m, 2);
    } else if (one_in(m, 10)) {
        p.n_sack = 1;
        p.sack[0][0] = p.ack + rnd(m, 3000);
        p.sack[0][1] = p.sack[0][0] + rnd(m, 3000);
    }
    put(m, &p, -1);
}

/* --- the conversation --- */

static void note(struct talk *t, const char *text)
{
    size_t n = strlen(t->plan);

    snprintf(t->plan + n, sizeof t->plan - n, "%s%s", n ? ", " : "", text);
}

static void write_script(struct sim *m)
{
    struct script *s = &m->s;
    struct talk *t = m->t;

    s->spread = 1 + (one_in(m, 3) ? rnd(m, 30) : rnd(m, 4));
    s->loss = one_in(m, 3) ? rnd(m, 25) : one_in(m, 2) ? rnd(m, 4) : 0;
    s->doubled = one_in(m, 4) ? rnd(m, 10) : 0;
#define MAYBE(N, FIELD, TEXT)                                                                      \
    if (one_in(m, N)) {                                                                            \
        s->FIELD = true;                                                                           \
        note(t, TEXT);                                                                             \
    }
    MAYBE(25, simultaneous, "simultaneous open")
    MAYBE(12, early_data, "data in the SYN")
    MAYBE(20, fresh_isn, "SYNs with other numbers")
    MAYBE(20, cookies, "SYN|ACKs with other numbers")
    MAYBE(6, keepalive, "keep-alives")
    MAYBE(8, greedy, "FIN without room")
    MAYBE(12, shrinks, "shrinking window")
    MAYBE(8, slow, "slow reader")
    MAYBE(8, urgent, "urgent data")
    MAYBE(3, stamps, "time stamps")
    MAYBE(25, no_server, "closed port")
    MAYBE(20, older, "half-open server")
    MAYBE(20, flips_acks, "old acknowledgements")
#undef MAYBE
    for (unsigned d = 0; d < 2; d++) {
        if (one_in(m, 12)) {
            s->abort_at[d] = 1 + rnd(m, 60);
            note(t, d ? "server aborts" : "client aborts");
        }
        if (one_in(m, 15)) {
            s->reboot_at[d] = 1 + rnd(m, 80);
            note(t, d ? "server reboots" : "client reboots");
        }
    }
    if (one_in(m, 6) || s->reboot_at[CLIENT]) {
        s->call_again_at = s->reboot_at[CLIENT] + 5 + rnd(m, 120);
        note(t, "port used again");
    }
    if (!one_in(m, 3)) {
        s->forge = one_in(m, 3) ? 5 + rnd(m, 40) : 1 + rnd(m, 8);
        s->blind = one_in(m, 4);
        note(t, s->blind ? "blind adversary" : "adversary");
    }
}

static void begin(struct sim *m)
{
    reset_end(m, CLIENT, CLOSED);
    reset_end(m, SERVER, m->s.no_server ? CLOSED : LISTEN);
    if (m->s.older) {
        struct end *e = &m->end[SERVER];

        e->state = OPEN;
        e->rcv = rnd32(m);
        e->shown = e->rcv + e->buffer;
        e->una = e->nxt = e->max = e->stop = e->edge = e->iss + 1;
        e->closes = false;
        e->timer = UINT32_MAX;
    }
    call(m, CLIENT);
    m->t->isn[CLIENT] = m->end[CLIENT].iss;
    m->t->isn[SERVER] = m->end[SERVER].iss;
    if (m->s.simultaneous) {
        call(m, SERVER);
        m->end[SERVER].timer = rnd(m, 5);
        m->t->isn[SERVER] = m->end[SERVER].iss;
    }
}

static void follow_script(struct sim *m)
{
    for (unsigned d = 0; d < 2; d++) {
        struct end *e = &m->end[d];

        if (m->now == m->s.abort_at[d] && e->state >= SYN_SENT) {
            send_rst(m, d, e->nxt, e->state >= SYN_RCVD && one_in(m, 2), e->rcv);
            e->state = CLOSED;
        }
        if (m->now == m->s.reboot_at[d])
            e->state = d == CLIENT ? CLOSED : LISTEN;
    }
    if (m->now == m->s.call_again_at)
        call(m, CLIENT);
    if (m->s.fresh_isn && m->end[CLIENT].state == SYN_SENT && m->now == m->end[CLIENT].timer)
        call(m, CLIENT);
    if (rnd(m, 100) < m->s.forge)
        forge(m);
}

static void fly(struct sim *m)
{
    for (unsigned i = 0; i < m->n_air;) {
        struct air a = m->air[i];

        if (a.due > m->now) {
            i++;
            continue;
        }
        memmove(&m->air[i], &m->air[i + 1], (m->n_air - i - 1) * sizeof a);
        m->n_air--;
        if (a.seen >= 0) {
            deliver(m, &a);
        } else if (m->t->n < TALK_PACKETS) {
            m->t->p[m->t->n] = a.p;
            if (wire_make(m->t, m->t->n))
                put(m, &a.p, (int)m->t->n++);
        }
    }
}

static bool is_quiet(const struct sim *m)
{
    const struct end *a = &m->end[0], *b = &m->end[1];

    if (m->n_air || m->now < m->s.call_again_at)
        return false;
    return (a->state <= LISTEN || is_waiting(a)) && (b->state <= LISTEN || is_waiting(b));
}

void talk_tcp(struct talk *t, uint64_t seed, uint32_t number)
{
    struct sim m;
    uint8_t *bytes = t->bytes;

    memset(t, 0, sizeof *t);
    memset(&m, 0, sizeof m);
    t->bytes = bytes;
    t->seed = seed;
    t->number = number;
    m.t = t;
    m.random = seed ^ (uint64_t)number << 20;
    next_random(&m.random);
    t->family = one_in(&m, 3) ? 6 : 4;
    t->proto = 6;
    t->shape = (uint8_t)rnd(&m, N_SHAPES);
    t->port[CLIENT] = (uint16_t)(20000 + number % 40000);
    t->port[SERVER] = (uint16_t)(80 + rnd(&m, 400));
    t->remote = (uint8_t)(1 + number % 200);
    write_script(&m);
    begin(&m);
    for (m.now = 1; m.now < 600 && t->n < TALK_PACKETS && !is_quiet(&m); m.now++) {
        fly(&m);
        follow_script(&m);
        act(&m, CLIENT);
        act(&m, SERVER);
    }
}
