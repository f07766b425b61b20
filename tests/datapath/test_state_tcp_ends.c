/* SPDX-License-Identifier: Apache-2.0 */

/* TCP tracking between two simulated ends, with a lossy, reordering path between them and the
 * observer: what an honest end needs to hear is never refused. */

#include "tcp_observer.h"

#include <stdlib.h>

#include "tests/lib/trials.h"

#define FIN MOAT_TCP_FIN
#define SYN MOAT_TCP_SYN
#define RST MOAT_TCP_RST
#define ACK MOAT_TCP_ACK

#define MAX_FLIGHT 256
#define N_HOLES 8

struct packet {
    struct moat_tcp_seg s;
    uint32_t due;
    uint8_t dir;
    bool observed;
};

struct end {
    uint32_t isn, una, nxt, max; /* sent: acknowledged, next, highest */
    uint32_t edge;               /* right edge that the peer allows */
    uint32_t stop;               /* sequence number of the FIN */
    uint32_t got, shown;         /* received in order; right edge shown to the peer */
    uint32_t buffer, unread;
    struct {
        uint32_t from, to;
    } early[N_HOLES]; /* received out of order; from == to: free */
    uint32_t fin;     /* the peer's, if fin_known */
    uint32_t widest;  /* window that the observer saw it offer */
    uint32_t timer;
    uint8_t scale, offer; /* in use; option of the SYN */
    bool heard, up, fin_known, owes;
};

struct sim {
    struct end end[2];
    struct packet flight[MAX_FLIGHT];
    unsigned n;
    uint32_t now;
    unsigned loss, spread; /* percent; how late a segment may be */
    unsigned skip;         /* segments that pass before the observer starts */
    unsigned refused, forged;
    struct observer o;
};

static uint32_t rnd(uint32_t n)
{
    return (uint32_t)random() % n;
}

static uint32_t rnd32(void)
{
    return (uint32_t)random() << 16 ^ (uint32_t)random();
}

static bool before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static void put(struct sim *m, const struct packet *p)
{
    if (m->n == MAX_FLIGHT || rnd(100) < m->loss)
        return;
    m->flight[m->n] = *p;
    m->flight[m->n].due = m->now + 1 + (rnd(4) ? 0 : rnd(m->spread));
    m->n++;
}

static void emit(struct sim *m, unsigned d, uint8_t flags, uint32_t seq, uint32_t len)
{
    struct end *e = &m->end[d];
    uint8_t scale = flags & SYN ? 0 : e->scale;
    uint32_t room = (e->buffer - e->unread) >> scale << scale, win;
    struct packet p = {.dir = (uint8_t)d};

    if (before(e->shown, e->got + room))
        e->shown = e->got + room; /* never taken back */
    win = (e->shown - e->got) >> scale;
    if (win > UINT16_MAX) {
        win = UINT16_MAX;
        e->shown = e->got + (win << scale);
    }
    p.s = (struct moat_tcp_seg){.seq = seq,
                                .ack = flags & ACK ? e->got : 0,
                                .len = len,
                                .win = (uint16_t)win,
                                .flags = flags,
                                .wscale = flags & SYN ? e->offer : 0};
    seq += len + !!(flags & SYN) + !!(flags & FIN);
    if (before(e->max, seq))
        e->max = seq;
    e->owes = false;
    put(m, &p);
    if (!rnd(50))
        put(m, &p); /* doubled on the way */
}

/* Data from seq on, as far as the window goes, with the FIN if it fits. */
static bool emit_data(struct sim *m, unsigned d, uint32_t seq)
{
    struct end *e = &m->end[d];
    uint32_t room = before(seq, e->edge) ? e->edge - seq : 0, len;
    bool last;

    if (before(e->stop, seq))
        return false;
    len = e->stop - seq;
    len = len < room ? len : room;
    if (len > 9000)
        len = 9000;
    if (len > 1 && !rnd(4))
        len = 1 + rnd(len);
    last = seq + len == e->stop && len < room;
    if (!len && !last)
        return false;
    emit(m, d, last ? FIN | ACK : ACK, seq, len);
    if (before(e->nxt, seq + len + last))
        e->nxt = seq + len + last;
    return true;
}

static void act(struct sim *m, unsigned d)
{
    struct end *e = &m->end[d];

    if (e->unread && rnd(2)) {
        e->unread -= 1 + rnd(e->unread);
        e->owes |= e->up && !rnd(3); /* window update */
    }
    if (!e->up) {
        if (e->nxt != e->isn && m->now >= e->timer) {
            emit(m, d, e->heard ? SYN | ACK : SYN, e->isn, 0);
            e->timer = m->now + 20 + rnd(20);
        }
        return;
    }
    if (rnd(3) && emit_data(m, d, e->nxt)) {
        e->timer = m->now + 20 + rnd(20);
    } else if (m->now >= e->timer) {
        if (!emit_data(m, d, e->una)) {
            /* Probes: a byte beyond a closed window, or an old one. */
            if (e->una == e->edge && before(e->una, e->stop) && rnd(2)) {
                emit(m, d, ACK, e->una, 1);
                if (e->nxt == e->una)
                    e->nxt++;
            } else {
                emit(m, d, ACK, e->una - 1, 0);
            }
        }
        e->timer = m->now + 20 + rnd(20);
    } else if (e->owes && rnd(2)) {
        emit(m, d, ACK, e->nxt, 0);
    }
}

static void store(struct end *e, uint32_t from, uint32_t to)
{
    uint32_t was = e->got;
    int free = -1;

    if (before(e->shown, to))
        to = e->shown;
    if (!before(from, to))
        return;
    for (int i = 0; i < N_HOLES; i++)
        if (e->early[i].from == e->early[i].to)
            free = i;
    if (before(e->got, from)) {
        if (free >= 0 && rnd(8)) {
            e->early[free].from = from;
            e->early[free].to = to;
        }
        return;
    }
    if (before(e->got, to))
        e->got = to;
    for (int again = 1; again;) {
        again = 0;
        for (int i = 0; i < N_HOLES; i++) {
            if (e->early[i].from == e->early[i].to || before(e->got, e->early[i].from))
                continue;
            again = before(e->got, e->early[i].to);
            if (again)
                e->got = e->early[i].to;
            e->early[i].from = e->early[i].to;
            if (again)
                break;
        }
    }
    e->unread += e->got - was;
}

static void receive_syn(struct end *e, const struct moat_tcp_seg *s)
{
    e->owes = true;
    if (e->heard)
        return;
    e->heard = true;
    e->got = e->shown = s->seq + 1;
    e->edge = e->una + (s->flags & ACK ? 0 : 1) + s->win;
    e->scale = e->offer & s->wscale & 0x80 ? e->offer & 15 : 0;
    e->timer = 0;
    if (e->nxt == e->isn) /* the called end */
        e->nxt = e->max = e->isn + 1;
}

static void receive(struct sim *m, const struct packet *p, uint8_t peers_scale)
{
    struct end *e = &m->end[!p->dir];
    const struct moat_tcp_seg *s = &p->s;
    uint32_t end = s->seq + s->len;

    if (s->flags & SYN)
        receive_syn(e, s);
    if (!e->heard || e->nxt == e->isn)
        return;
    if (s->flags & ACK && before(e->una, s->ack) && !before(e->max, s->ack)) {
        e->una = s->ack;
        e->up = true;
        e->timer = m->now + 20;
        if (before(e->nxt, e->una))
            e->nxt = e->una;
    }
    if (s->flags & SYN || !e->up)
        return;
    if (before(e->edge, s->ack + ((uint32_t)s->win << peers_scale)))
        e->edge = s->ack + ((uint32_t)s->win << peers_scale);
    if (s->len || s->flags & FIN || s->seq != e->got)
        e->owes = true;
    store(e, s->seq, end);
    if (s->flags & FIN) {
        e->fin = end;
        e->fin_known = true;
    }
    if (e->fin_known && e->got == e->fin)
        e->got++;
}

/* Whether the receiver would learn anything: new data, a new acknowledgement, a window.
 * A SYN|ACK that comes after what followed it is told again with every segment.  One that
 * was overtaken by a whole window of either direction is as good as lost (RFC 5961,
 * section 5.2). */
static bool matters(const struct sim *m, const struct packet *p)
{
    const struct end *r = &m->end[!p->dir], *from = &m->end[p->dir];
    uint32_t back = from->widest, forth = r->widest;
    uint32_t room = p->s.len + !!(p->s.flags & (SYN | FIN)), end = p->s.seq + room;

    if ((p->s.flags & (SYN | ACK)) == SYN && from->heard)
        return false; /* its SYN|ACK says the same */
    if (p->s.flags & SYN ? from->up
                         : before(p->s.ack + (back > 66000 ? back : 66000), r->max) ||
                               before(end + forth, from->max))
        return false;
    return !r->heard || (room && before(r->got, end)) || before(r->una, p->s.ack) ||
           (p->s.seq == r->got && p->s.ack == r->una);
}

/* Somebody off the path, who does not know the numbers. */
static void forge(struct sim *m)
{
    static const uint8_t flags[] = {ACK, ACK, FIN | ACK, RST, SYN | ACK, SYN};
    unsigned d = rnd(2);
    uint32_t a = m->end[0].buffer, b = m->end[1].buffer, far = 4 * (a > b ? a : b) + 150000;
    uint32_t off = far + rnd32() % ((1u << 31) - 2 * far);
    struct moat_tcp_seg s = {.seq = m->end[d].max,
                             .ack = m->end[!d].max,
                             .len = rnd(1500),
                             .win = (uint16_t)rnd(65536),
                             .flags = flags[rnd(6)]};

    off = rnd(2) ? off : -off;
    if (s.flags == ACK && rnd(2))
        s.ack += off;
    else
        s.seq += off;
    if (s.flags & SYN && d == MOAT_FROM_VM)
        return; /* who else should speak for the VM? */
    /* A session that was picked up believes in any window. */
    if (m->o.loose || !m->o.exists || !m->end[0].up || !m->end[1].up ||
        moat_tcp_reopens(m->o.side, d, &s))
        return;
    ck_assert_msg(observe(&m->o, d, &s, false) != MOAT_R_NONE, "forged: flags %x seq %+d ack %+d",
                  s.flags, (int)(s.seq - m->end[d].max), (int)(s.ack - m->end[!d].max));
    m->forged++;
}

static void arrive(struct sim *m, struct packet p)
{
    const struct end *from = &m->end[p.dir];
    enum moat_reason reason;

    if (p.observed) {
        receive(m, &p, from->scale);
        return;
    }
    p.observed = true;
    if (m->skip || (m->o.loose && !m->o.exists && p.s.flags & SYN)) {
        m->skip -= m->skip > 0;
        put(m, &p);
        return;
    }
    if (m->o.exists && moat_tcp_reopens(m->o.side, p.dir, &p.s))
        return; /* a SYN that late opens anew */
    reason = observe(&m->o, p.dir, &p.s, false);
    if (reason == MOAT_R_NONE || reason == MOAT_TCP_UNBELIEVED) {
        uint32_t win = p.s.flags & SYN ? p.s.win : (uint32_t)p.s.win << from->scale;

        if (win > from->widest)
            m->end[p.dir].widest = win;
        put(m, &p);
        return;
    }
    m->refused++;
    ck_assert_msg(!matters(m, &p) || (m->o.loose && reason == MOAT_R_TCP_NO_SESSION),
                  "%s: flags %x seq %+d len %u ack %+d win %u; side %x..%x %x..%x",
                  moat_reason_name(reason), p.s.flags, (int)(p.s.seq - from->isn), p.s.len,
                  (int)(p.s.ack - m->end[!p.dir].isn), p.s.win, m->o.side[p.dir].seq_lo - from->isn,
                  m->o.side[p.dir].seq_hi - from->isn,
                  m->o.side[!p.dir].seq_lo - m->end[!p.dir].isn,
                  m->o.side[!p.dir].seq_hi - m->end[!p.dir].isn);
}

static bool is_closed(const struct end *e)
{
    return e->up && e->una == e->stop + 1 && e->fin_known && e->got == e->fin + 1;
}

static void start(struct sim *m, bool midstream)
{
    memset(m, 0, sizeof *m);
    m->loss = rnd(3) ? rnd(4) : rnd(20);
    m->spread = 1 + rnd(30);
    if (midstream) {
        m->skip = 2 + rnd(40);
        m->o.loose = true;
    }
    for (int d = 0; d < 2; d++) {
        struct end *e = &m->end[d];
        unsigned bits = 8 + rnd(13);

        e->isn = rnd(2) ? rnd32() : -rnd(200000);
        e->una = e->nxt = e->max = e->isn;
        e->buffer = (1u << bits) + rnd(1u << bits);
        e->offer = rnd(4) ? (uint8_t)(0x80 | (rnd(2) ? rnd(8) : rnd(15))) : 0;
        e->stop = e->isn + 1 + (rnd(4) ? rnd(3 * e->buffer) % 300000 : 0);
    }
    for (unsigned d = 0; d < 2; d++)
        if (!d || !rnd(10)) /* now and then both call */
            m->end[d].nxt = m->end[d].max = m->end[d].isn + 1;
}

/* True if it came to its end. */
static bool run(struct sim *m, unsigned n_steps)
{
    unsigned reset_at = rnd(10) ? n_steps : rnd(300);

    for (m->now = 1; m->now < n_steps; m->now++) {
        for (unsigned i = 0; i < m->n;) {
            struct packet p = m->flight[i];

            if (p.due > m->now) {
                i++;
                continue;
            }
            m->flight[i] = m->flight[--m->n];
            arrive(m, p);
        }
        if (is_closed(&m->end[0]) && is_closed(&m->end[1]))
            return true;
        act(m, 0);
        act(m, 1);
        if (!rnd(20))
            forge(m);
        if (m->now > reset_at && m->end[0].up && !m->skip && m->o.exists && !m->o.loose) {
            struct moat_tcp_seg s = {.seq = m->end[0].nxt, .flags = RST};

            enum moat_reason reason = observe(&m->o, 0, &s, false);

            ck_assert(reason == MOAT_R_NONE || reason == MOAT_TCP_UNBELIEVED);
            return true;
        }
    }
    return false;
}

static void simulate(unsigned n, bool midstream)
{
    unsigned done = 0, forged = 0, refused = 0;

    srandom(midstream ? 5 : 4);
    for (unsigned i = 0; i < n; i++) {
        struct sim m;

        start(&m, midstream);
        done += run(&m, 4000);
        forged += m.forged;
        refused += m.refused;
    }
    ck_assert_uint_gt(done, n / 100 * 85);
    ck_assert_uint_lt(refused, n);
    ck_assert(midstream || forged > n);
}

START_TEST(honest_ends_are_never_refused)
{
    simulate(TRIALS(20000), false);
}
END_TEST

START_TEST(honest_ends_picked_up_midstream)
{
    simulate(TRIALS(4000), true);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("state_tcp, ends");
    TCase *tc = tcase_create("ends");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, honest_ends_are_never_refused);
    tcase_add_test(tc, honest_ends_picked_up_midstream);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
