/* SPDX-License-Identifier: Apache-2.0 */

/* Two machines (migrate.h), two model engines, a model database, a connection that
 * breaks, agents that die, and one VM that is where it is: random histories, with
 * what must always hold checked after every action, and what must come true in the
 * end checked after everything has healed. */

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "migrate.h"
#include "wire.h"

#define ENROLL_MS 1500
#define HOLD_MS 1000
#define SILENT_MS 2000
#define QUEUE 256

struct frame {
    unsigned type;
    uint64_t epoch;
    uint16_t flags;
    bool ok;
};

struct fifo {
    struct frame f[QUEUE];
    unsigned head, tail;
};

/* conns[d] was opened by destination d. */
struct conn {
    bool up, told_up;
    bool closed[2]; /* by that host: the other hears it when it has read everything */
    struct fifo to[2];
};

struct host {
    struct mig m;
    bool alive;
    long long alive_since;
    int conn; /* index, or -1 */
    /* engine */
    bool slot, ready, precopy, unplugged, port, connected, running, logging, expired;
    uint8_t state;
    uint64_t epoch;
    long long hold_from, enroll_until;
    bool full; /* has the VM's sessions */
    unsigned edges;
    /* feed */
    bool feeding, final;
    uint64_t offer;
    /* last seen of the database */
    bool db_seen;
    int db_holder;
    uint64_t db_epoch;
    bool take;
    uint64_t write;
};

static struct {
    struct host h[2];
    struct conn conns[2];
    bool db_up, net_up;
    bool forbidden; /* host B, by the database */
    int holder; /* -1: none */
    uint64_t epoch;
    long long now;
    unsigned long alone; /* slots opened without the source's consent */
    bool enrolled;       /* somewhere, once */
    bool lossy;          /* the history broke something: sessions may be lost */
    uint32_t seed, first_seed;
    int trace;
} w;

static const char *const names[2] = {"hostA", "hostB"};

static uint32_t rnd(uint32_t n)
{
    w.seed = w.seed * 1664525 + 1013904223;
    return (w.seed >> 8) % n;
}

static void trace(int x, const char *what, unsigned a, unsigned long long b)
{
    if (w.trace)
        printf("%6lld %c %-12s %s %u %llu\n", w.now, 'A' + x, mig_state_name(w.h[x].m.state), what,
               a, b);
}

/* --- what must always hold ---------------------------------------------------------- */

static bool passes(const struct host *h)
{
    return h->state == MOAT_SLOT_ACTIVE || h->state == MOAT_SLOT_ENROLLING;
}

static void always(void)
{
    const struct host *a = &w.h[0], *b = &w.h[1];
    bool open_a = a->slot && passes(a) && !a->unplugged;
    bool open_b = b->slot && passes(b) && !b->unplugged;

    ck_assert_msg(!(open_a && a->running && open_b && b->running), "traffic on two hosts");
    if (open_a && open_b && !w.alone)
        ck_abort_msg("two open holders, seed %u, time %lld, epochs %llu %llu", w.first_seed, w.now,
                     (unsigned long long)a->epoch, (unsigned long long)b->epoch);
}

/* --- the engine ------------------------------------------------------------------------ */

static void engine_open(struct host *h)
{
    h->ready = false;
    h->hold_from = 0;
    h->state = MOAT_SLOT_ACTIVE;
}

static void engine_claim(struct host *h, uint8_t state, uint64_t epoch)
{
    if (!h->port)
        return;
    if (!h->slot) {
        h->slot = true;
        h->state = state == MOAT_SLOT_ARRIVING ? state : MOAT_SLOT_BLOCKED;
        h->epoch = epoch;
        h->ready = h->precopy = h->expired = h->full = false;
        h->hold_from = h->running ? w.now : 0;
    }
    h->unplugged = false;
    if (epoch > h->epoch)
        h->epoch = epoch;
    if (state == MOAT_SLOT_ENROLLING) {
        /* Only what never had a firewall is opened wide. */
        ck_assert_msg(h->state == MOAT_SLOT_BLOCKED && !w.enrolled && w.epoch == 1 && epoch == 1,
                      "enrolled twice, seed %u", w.first_seed);
        w.enrolled = true;
        h->state = state;
        h->enroll_until = w.now + ENROLL_MS;
    }
    if (state == MOAT_SLOT_ACTIVE && h->state != MOAT_SLOT_ENROLLING)
        h->state = MOAT_SLOT_ACTIVE;
}

static void engine_state(struct host *h, uint8_t state, uint64_t epoch)
{
    if (!h->slot)
        return;
    if (epoch) {
        ck_assert_msg(epoch >= h->epoch, "epoch falls from %llu to %llu",
                      (unsigned long long)h->epoch, (unsigned long long)epoch);
        h->epoch = epoch;
    }
    h->precopy = false;
    if (h->state == MOAT_SLOT_ARRIVING && state == MOAT_SLOT_ACTIVE) {
        if (h->running && !h->unplugged)
            engine_open(h);
        else
            h->ready = true;
        return;
    }
    if (state == MOAT_SLOT_ARRIVING && h->state != state) {
        h->full = h->ready = h->expired = false;
        h->hold_from = h->running ? w.now : 0;
    }
    if (state != MOAT_SLOT_ARRIVING)
        h->ready = false;
    ck_assert(state != MOAT_SLOT_FROZEN || h->state == state);
    h->state = state;
}

static void engine_stop(struct host *h)
{
    if (!h->running)
        return;
    h->running = false;
    if (h->slot && h->logging && h->precopy && passes(h)) {
        h->state = MOAT_SLOT_FROZEN;
        h->precopy = false;
    }
}

static void engine_start(struct host *h)
{
    h->running = true;
    if (h->slot && h->state == MOAT_SLOT_ARRIVING) {
        h->hold_from = w.now;
        h->expired = false;
        if (h->ready && !h->unplugged)
            engine_open(h);
    }
}

static void engine_turn(struct host *h)
{
    if (h->slot && h->state == MOAT_SLOT_ENROLLING && w.now >= h->enroll_until)
        h->state = MOAT_SLOT_ACTIVE;
    if (!h->slot || h->state != MOAT_SLOT_ARRIVING || !h->hold_from)
        return;
    if (!h->expired && w.now - h->hold_from >= HOLD_MS) {
        h->expired = true;
        h->edges |= 1u << MIG_EV_HOLD_EXPIRED;
    }
    if (w.now - h->hold_from >= HOLD_MS + SILENT_MS && !h->unplugged) {
        ck_assert_msg(!h->alive || w.now - h->alive_since < HOLD_MS + SILENT_MS,
                      "a live agent let the engine decide, seed %u", w.first_seed);
        engine_open(h);
        w.alone++;
    }
}

/* --- connections ------------------------------------------------------------------------- */

static void push(struct fifo *q, struct frame f)
{
    ck_assert_uint_lt(q->tail - q->head, QUEUE);
    q->f[q->tail++ % QUEUE] = f;
}

static void step(int x, struct mig_event *ev);

static void break_conn(int d)
{
    struct conn *c = &w.conns[d];

    memset(c, 0, sizeof *c);
    for (int x = 0; x < 2; x++)
        if (w.h[x].conn == d) {
            w.h[x].conn = -1;
            w.h[x].feeding = false;
            if (w.h[x].alive) {
                struct mig_event ev = {.type = MIG_EV_LINK_DOWN};
                step(x, &ev);
            }
        }
}

static void close_side(int x)
{
    struct host *h = &w.h[x];

    if (h->conn >= 0)
        w.conns[h->conn].closed[x] = true;
    h->conn = -1;
}

static void send(int x, struct frame f)
{
    struct host *h = &w.h[x];

    trace(x, wire_type_name(f.type), 0, f.epoch);
    if (h->conn >= 0 && w.conns[h->conn].up)
        push(&w.conns[h->conn].to[!x], f);
}

/* --- the agent ------------------------------------------------------------------------------ */

static void gather(int x, struct mig_facts *f)
{
    const struct host *h = &w.h[x];

    memset(f, 0, sizeof *f);
    f->port = h->port;
    f->engine = true;
    f->slot = h->slot;
    if (h->slot) {
        f->connected = h->connected;
        f->running = h->running;
        f->ready = h->ready;
        f->slot_state = h->unplugged ? MOAT_SLOT_BLOCKED : h->state;
        f->slot_epoch = h->epoch;
        f->has_ruleset = true;
    }
    f->db_up = w.db_up;
    f->permitted = h->db_seen && !(w.forbidden && x == 1);
    f->db_epoch = h->db_epoch;
    f->holder = !h->db_seen          ? MIG_DB_UNKNOWN
                : h->db_holder == -1 ? MIG_DB_NONE
                : h->db_holder == x  ? MIG_DB_SELF
                                     : MIG_DB_OTHER;
    if (f->holder == MIG_DB_OTHER)
        strcpy(f->db_host, names[!x]);
}

static void execute(int x, const struct mig_action *a)
{
    struct host *h = &w.h[x];
    static const char *const words[] = {"claim", "orphan", "release", "state", "open", "precopy",
                                        "flush", "handed-over", "take", "write", "connect",
                                        "disconnect", "send", "feed", "feed-final", "feed-stop",
                                        "install", "record", "notice", "alarm"};

    if (a->what != MIG_DO_SEND)
        trace(x, words[a->what], a->state, a->epoch);
    switch (a->what) {
    case MIG_DO_CLAIM:
        engine_claim(h, a->state, a->epoch);
        break;
    case MIG_DO_CLAIM_ORPHAN:
        ck_abort_msg("the database knows the vNIC");
        break;
    case MIG_DO_RELEASE:
        h->slot = h->full = false;
        break;
    case MIG_DO_STATE:
        engine_state(h, a->state, a->epoch);
        break;
    case MIG_DO_OPEN:
        if (a->why != MIG_OPEN_COMPLETE) {
            w.lossy = true;
            if (!h->m.fenced)
                w.alone++;
        }
        engine_state(h, MOAT_SLOT_ACTIVE, a->epoch);
        break;
    case MIG_DO_PRECOPY:
        h->precopy = a->ok;
        break;
    case MIG_DO_FLUSH:
        h->full = false;
        break;
    case MIG_DO_TAKE:
        h->take = true;
        break;
    case MIG_DO_WRITE_HOLDER:
        h->write = a->epoch > h->write ? a->epoch : h->write;
        break;
    case MIG_DO_CONNECT:
        if (h->conn < 0 && w.net_up && w.h[!x].alive && !w.conns[x].up) {
            memset(&w.conns[x], 0, sizeof w.conns[x]);
            w.conns[x].up = true;
            h->conn = x;
        }
        break;
    case MIG_DO_DISCONNECT:
        close_side(x);
        break;
    case MIG_DO_SEND:
        send(x, (struct frame){a->frame, a->epoch, a->flags, a->ok});
        break;
    case MIG_DO_FEED_START:
        h->feeding = true;
        h->final = false;
        break;
    case MIG_DO_FEED_FINAL:
        h->final = true;
        h->offer = h->m.offer;
        break;
    case MIG_DO_FEED_STOP:
        h->feeding = false;
        break;
    default:
        break;
    }
    always();
}

static void step(int x, struct mig_event *ev)
{
    struct host *h = &w.h[x];
    struct mig_facts f;
    struct mig_out out;

    gather(x, &f);
    ev->facts = &f;
    mig_step(&h->m, ev, w.now, &out);
    for (unsigned i = 0; i < out.n; i++)
        execute(x, &out.a[i]);
}

static void facts(int x)
{
    for (int i = 0; i < 4; i++) {
        struct mig_event ev = {.type = MIG_EV_FACTS};
        step(x, &ev);
    }
}

static enum mig_event_type event_of(unsigned type)
{
    switch (type) {
    case WIRE_REFUSE: return MIG_EV_REFUSE;
    case WIRE_POLICY: return MIG_EV_POLICY;
    case WIRE_START: return MIG_EV_START;
    case WIRE_STOP: return MIG_EV_STOP;
    case WIRE_FENCED: return MIG_EV_FENCED;
    case WIRE_FINAL: return MIG_EV_FINAL;
    case WIRE_FINAL_ACK: return MIG_EV_FINAL_ACK;
    case WIRE_DONE: return MIG_EV_DONE;
    case WIRE_STARTED: return MIG_EV_STARTED;
    case WIRE_OPENED: return MIG_EV_OPENED;
    case WIRE_TAKE_BACK: return MIG_EV_TAKE_BACK;
    case WIRE_TAKEN_BACK: return MIG_EV_TAKEN_BACK;
    case WIRE_CANCEL: return MIG_EV_CANCEL;
    default: return MIG_EV_FACTS;
    }
}

static void on_request(int x, int c, const struct frame *f)
{
    struct host *h = &w.h[x];
    enum mig_refuse code;
    const char *why;
    bool permitted = h->db_seen && !(w.forbidden && x == 0);

    if (!mig_may_ask(&h->m, names[!x], permitted, &code, &why)) {
        push(&w.conns[c].to[!x], (struct frame){WIRE_REFUSE, 0, (uint16_t)code, false});
        w.conns[c].closed[x] = true;
        if (h->conn == c)
            h->conn = -1;
        return;
    }
    if (h->conn >= 0 && h->conn != c)
        close_side(x);
    h->conn = c;
    struct mig_event ev = {.type = MIG_EV_REQUEST, .epoch = f->epoch, .flags = f->flags,
                           .ok = permitted, .host = names[!x]};
    step(x, &ev);
    if (!h->m.link && h->conn == c)
        close_side(x);
}

static void deliver(int x, int c)
{
    struct fifo *q = &w.conns[c].to[x];

    if (q->head == q->tail) {
        if (w.conns[c].closed[!x]) {
            bool mine = w.h[x].conn == c;
            memset(&w.conns[c], 0, sizeof w.conns[c]);
            if (mine) {
                struct mig_event ev = {.type = MIG_EV_LINK_DOWN};
                w.h[x].conn = -1;
                w.h[x].feeding = false;
                step(x, &ev);
            }
        }
        return;
    }
    struct frame f = q->f[q->head++ % QUEUE];
    if (w.conns[c].closed[x])
        return;
    trace(x, "<-", f.type, f.epoch);
    if (f.type == WIRE_REQUEST) {
        on_request(x, c, &f);
        return;
    }
    if (w.h[x].conn != c)
        return;
    if (f.type == WIRE_FINAL && w.h[x].m.state == MIG_FILLING)
        w.h[x].full = true;
    struct mig_event ev = {.type = event_of(f.type), .epoch = f.epoch, .flags = f.flags, .ok = f.ok};
    step(x, &ev);
}

static void run_host(int x)
{
    struct host *h = &w.h[x];

    if (w.db_up && h->alive) {
        h->db_seen = true;
        h->db_holder = w.holder;
        h->db_epoch = w.epoch;
    }
    if (!h->alive)
        return;
    for (unsigned t = 0; t < MIG_N_EVENTS; t++)
        if (h->edges & 1u << t) {
            struct mig_event ev = {.type = (enum mig_event_type)t};
            h->edges &= ~(1u << t);
            step(x, &ev);
        }
    if (h->conn == x && w.conns[x].up && !w.conns[x].told_up) {
        struct mig_event ev = {.type = MIG_EV_LINK_UP};
        w.conns[x].told_up = true;
        step(x, &ev);
    }
    facts(x);
    if (h->feeding && h->final && h->conn >= 0) {
        h->feeding = false;
        send(x, (struct frame){WIRE_FINAL, h->offer, 0, false});
    }
    if (w.db_up && h->take) {
        if (w.holder == -1) {
            w.holder = x;
            w.epoch++;
        }
        h->take = false;
    }
    if (w.db_up && h->write) {
        if (w.epoch < h->write) {
            trace(x, "db", 0, h->write);
            w.holder = x;
            w.epoch = h->write;
        }
        h->write = 0;
    }
}

static void turn(void)
{
    w.now += 5 + rnd(100);
    for (int x = 0; x < 2; x++)
        engine_turn(&w.h[x]);
    for (int x = 0; x < 2; x++)
        run_host(x);
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < 2; c++)
            if (w.conns[c].up)
                for (int x = 0; x < 2; x++)
                    if (w.conns[c].up && rnd(4) && w.h[x].alive)
                        deliver(x, c);
    for (int x = 0; x < 2; x++)
        if (w.h[x].alive)
            facts(x);
    always();
}

static void kill_agent(int x)
{
    struct host *h = &w.h[x];

    for (int c = 0; c < 2; c++)
        if (w.conns[c].up) {
            h->conn = -1;
            h->alive = false;
            break_conn(c);
        }
    h->alive = false;
    h->conn = -1;
    h->feeding = false;
    h->db_seen = false;
    h->take = false;
    h->write = 0;
    h->edges = 0;
}

static void start_agent(int x)
{
    mig_init(&w.h[x].m);
    w.h[x].alive = true;
    w.h[x].alive_since = w.now;
}

static void reset(uint32_t seed)
{
    bool traced = w.trace;

    memset(&w, 0, sizeof w);
    w.seed = w.first_seed = seed;
    w.trace = traced;
    w.now = 1000;
    w.db_up = w.net_up = true;
    w.holder = -1;
    for (int x = 0; x < 2; x++) {
        w.h[x].conn = -1;
        start_agent(x);
    }
}

/* --- the VM -------------------------------------------------------------------------------- */

static void plug(int x)
{
    w.h[x].port = true;
}

static void unplug(int x)
{
    struct host *h = &w.h[x];

    engine_stop(h);
    h->port = h->connected = h->logging = false;
}

static void qemu_connect(int x)
{
    w.h[x].connected = true;
    w.h[x].logging = false;
    w.h[x].edges |= 1u << MIG_EV_CONNECTED;
}

static void qemu_quit(int x)
{
    engine_stop(&w.h[x]);
    w.h[x].connected = w.h[x].logging = false;
}

static void turns(int n)
{
    while (n-- > 0)
        turn();
}

static bool until(bool (*what)(int), int x, int n)
{
    for (; n > 0; n--) {
        if (what(x))
            return true;
        turn();
    }
    return what(x);
}

static bool is_open(int x)
{
    return w.h[x].slot && passes(&w.h[x]) && !w.h[x].unplugged;
}
static bool is_fed(int x)
{
    return w.h[x].precopy;
}
static bool is_ready(int x)
{
    return w.h[x].ready;
}
static bool is_departed(int x)
{
    return w.h[x].state == MOAT_SLOT_DEPARTED;
}
static bool is_gone(int x)
{
    return !w.h[x].slot;
}

static void boot(int x)
{
    plug(x);
    turns(4);
    qemu_connect(x);
    engine_start(&w.h[x]);
    w.h[x].full = true;
    ck_assert(until(is_open, x, 50));
    ck_assert_int_eq(w.holder, x);
    w.h[x].full = true;
}

/* --- tables: one history each, step by step --------------------------------------------------- */

/* What nobody ever held is enrolled, once: not after a loss of the slot, nor by an agent
 * that does not remember. */
START_TEST(first_slot)
{
    reset(9);
    boot(0);
    ck_assert(w.enrolled);
    ck_assert_int_eq(w.h[0].state, MOAT_SLOT_ENROLLING);
    kill_agent(0);
    start_agent(0);
    turns(4);
    ck_assert_int_eq(w.h[0].state, MOAT_SLOT_ENROLLING); /* goes on */
    ck_assert_int_eq(w.h[0].m.state, MIG_HOLDING);
    w.now = w.h[0].enroll_until;
    turns(4);
    ck_assert_int_eq(w.h[0].state, MOAT_SLOT_ACTIVE);
    for (int restart = 0; restart < 2; restart++) { /* the mapping is lost */
        if (restart)
            kill_agent(0);
        w.h[0].slot = false;
        if (restart)
            start_agent(0);
        ck_assert(until(is_open, 0, 50));
        ck_assert_int_eq(w.h[0].state, MOAT_SLOT_ACTIVE);
    }
}
END_TEST

/* Taken, but the claim was refused at first: still its first slot.  Forgotten in between: it
 * enforces. */
START_TEST(first_slot_late)
{
    reset(10);
    plug(0);
    struct host *h = &w.h[0];
    struct mig_facts f = {.port = true, .engine = true, .db_up = true, .holder = MIG_DB_NONE};
    struct mig_event ev = {.facts = &f};
    struct mig_out out;

    mig_init(&h->m);
    mig_step(&h->m, &ev, 1000, &out);
    ck_assert_uint_eq(out.n, 1);
    ck_assert_int_eq(out.a[0].what, MIG_DO_TAKE);
    f.holder = MIG_DB_SELF;
    f.db_epoch = 1;
    for (int i = 0; i < 3; i++) {
        mig_step(&h->m, &ev, 1000, &out);
        ck_assert_int_eq(out.a[0].what, MIG_DO_CLAIM);
        ck_assert_int_eq(out.a[0].state, i < 2 ? MOAT_SLOT_ENROLLING : MOAT_SLOT_ACTIVE);
        if (i == 1)
            mig_init(&h->m); /* the agent was restarted */
    }
    /* Held before, if not by us: no. */
    mig_init(&h->m);
    f.holder = MIG_DB_NONE;
    f.db_epoch = 7;
    mig_step(&h->m, &ev, 1000, &out);
    f.holder = MIG_DB_SELF;
    f.db_epoch = 8;
    mig_step(&h->m, &ev, 1000, &out);
    ck_assert_int_eq(out.a[0].state, MOAT_SLOT_ACTIVE);
}
END_TEST

/* The database came late: what the host's fail mode opened is enrolled, if it was never held. */
START_TEST(first_slot_of_an_orphan)
{
    struct mig_facts f = {.port = true, .engine = true, .db_up = true, .slot = true,
                          .slot_state = MOAT_SLOT_ACTIVE, .holder = MIG_DB_NONE};
    struct mig_event ev = {.facts = &f};
    struct mig m;
    struct mig_out out;

    f.db_epoch = (uint64_t)_i;
    mig_init(&m);
    m.state = MIG_HOLDING;
    m.orphan = true;
    mig_step(&m, &ev, 1000, &out);
    ck_assert_int_eq(out.a[0].what, MIG_DO_TAKE);
    f.holder = MIG_DB_SELF;
    f.db_epoch++;
    mig_step(&m, &ev, 1000, &out);
    ck_assert_int_eq(out.a[0].what, MIG_DO_CLAIM);
    ck_assert_int_eq(out.a[0].state, _i ? MOAT_SLOT_ACTIVE : MOAT_SLOT_ENROLLING);
    ck_assert_uint_eq(out.n, _i ? 2 : 1);
}
END_TEST

START_TEST(plain_move)
{
    reset(1);
    boot(0);
    for (int i = 0, s = 0; i < 20; i++, s = !s) {
        uint64_t before = w.epoch;
        plug(!s);
        turns(3);
        qemu_connect(!s);
        ck_assert(until(is_fed, s, 50));
        w.h[s].logging = true;
        turns(3);
        engine_stop(&w.h[s]);
        ck_assert_int_eq(w.h[s].state, MOAT_SLOT_FROZEN);
        ck_assert(until(is_ready, !s, 50));
        ck_assert(until(is_departed, s, 50));
        ck_assert(!is_open(!s));
        engine_start(&w.h[!s]);
        ck_assert(is_open(!s)); /* at once: no need of the agent */
        turns(20);
        ck_assert_int_eq(w.holder, !s);
        ck_assert_uint_eq(w.epoch, before + 1);
        ck_assert(w.h[!s].full);
        qemu_quit(s);
        if (i & 1) {
            unplug(s);
            ck_assert(until(is_gone, s, 50));
        }
    }
    ck_assert_uint_eq(w.alone, 0);
}
END_TEST

START_TEST(roll_back)
{
    reset(2);
    boot(0);
    plug(1);
    turns(3);
    qemu_connect(1);
    ck_assert(until(is_fed, 0, 50));
    w.h[0].logging = true;
    engine_stop(&w.h[0]);
    if (_i) /* after the hand-over; else in the middle of it */
        ck_assert(until(is_departed, 0, 50));
    engine_start(&w.h[0]);
    ck_assert(until(is_open, 0, 100));
    ck_assert(!is_open(1) && !w.h[1].ready);
    ck_assert(w.h[0].full);
    turns(20);
    ck_assert_int_eq(w.holder, 0);
    ck_assert_uint_eq(w.alone, 0);
}
END_TEST

/* The destination's VM runs before its state is there. */
START_TEST(early_resume)
{
    reset(3);
    boot(0);
    plug(1);
    turns(3);
    qemu_connect(1);
    engine_stop(&w.h[0]); /* no pre-copy at all */
    ck_assert(is_open(0));
    engine_start(&w.h[1]);
    ck_assert(until(is_open, 1, 50));
    ck_assert(w.h[1].full);
    ck_assert(!is_open(0));
    ck_assert_uint_eq(w.alone, 0);
}
END_TEST

/* The source cannot be reached: the database first, then open; if that is away
 * too, the VM's start decides. */
START_TEST(dead_source)
{
    reset(4);
    boot(0);
    plug(1);
    turns(10);
    kill_agent(0);
    w.db_up = !_i;
    qemu_quit(0);
    qemu_connect(1);
    engine_start(&w.h[1]);
    ck_assert(until(is_open, 1, 100));
    if (!_i)
        ck_assert_int_eq(w.holder, 1);
    w.db_up = true;
    start_agent(0);
    turns(20);
    ck_assert(!is_open(0));
    ck_assert_int_eq(w.holder, 1);
}
END_TEST

/* Somebody starts the VM a second time: the newcomer stays shut. */
START_TEST(two_vms)
{
    reset(5);
    boot(0);
    plug(1);
    turns(3);
    qemu_connect(1);
    engine_start(&w.h[1]);
    for (int i = 0; i < 400; i++) {
        turn();
        ck_assert(!is_open(1));
    }
    ck_assert(is_open(0));
    ck_assert_uint_eq(w.alone, 0);
    /* The first one ends: now the second may have it. */
    qemu_quit(0);
    ck_assert(until(is_open, 1, 200));
    ck_assert(!is_open(0));
}
END_TEST

/* The VM runs where it may not, and stays shut.  Then it may: its state comes from the
 * source, which has kept it, with or without its port. */
START_TEST(permitted_late)
{
    reset(6);
    boot(0);
    w.forbidden = true;
    plug(1);
    turns(3);
    qemu_connect(1);
    engine_stop(&w.h[0]);
    engine_start(&w.h[1]);
    qemu_quit(0);
    if (_i)
        unplug(0);
    for (int i = 0; i < 400; i++) {
        turn();
        ck_assert(!is_open(1));
    }
    ck_assert_int_eq(w.holder, 0);
    w.forbidden = false;
    ck_assert(until(is_open, 1, 100));
    ck_assert(w.h[1].full);
    ck_assert(!is_open(0));
    ck_assert_uint_eq(w.alone, 0);
    turns(20);
    ck_assert_int_eq(w.holder, 1);
}
END_TEST

START_TEST(who_may_ask)
{
    enum mig_refuse code;
    const char *why;
    struct mig m;

    mig_init(&m);
    ck_assert(!mig_may_ask(&m, "hostB", true, &code, &why));
    ck_assert_int_eq(code, MIG_REFUSE_NOT_HERE);
    m.state = MIG_HOLDING;
    ck_assert(mig_may_ask(&m, "hostB", true, &code, &why));
    ck_assert(!mig_may_ask(&m, "hostB", false, &code, &why));
    ck_assert_int_eq(code, MIG_REFUSE_DENIED);
    m.orphan = true;
    ck_assert(!mig_may_ask(&m, "hostB", true, &code, &why));
    m.orphan = false;
    m.state = MIG_FEEDING;
    strcpy(m.peer, "hostB");
    ck_assert(mig_may_ask(&m, "hostB", true, &code, &why));
    ck_assert(!mig_may_ask(&m, "hostC", true, &code, &why));
    m.state = MIG_GONE;
    ck_assert(mig_may_ask(&m, "hostB", true, &code, &why));
    ck_assert(!mig_may_ask(&m, "hostC", true, &code, &why));
    for (int s = MIG_WAITING; s < MIG_N_STATES; s++) {
        m.state = (enum mig_state)s;
        ck_assert(!mig_may_ask(&m, "hostB", true, &code, &why));
    }
}
END_TEST

/* Any event in any state: no crash, no action table overrun, and nobody opens a
 * slot because of a frame that is out of place. */
START_TEST(out_of_place)
{
    for (int s = 0; s < MIG_N_STATES; s++)
        for (int e = 0; e < MIG_N_EVENTS; e++)
            for (int slot = 0; slot < MOAT_N_SLOT_STATES; slot++)
                for (int bits = 0; bits < 64; bits++) {
                    struct mig_facts f = {.port = bits & 1, .engine = true, .slot = slot,
                                          .connected = bits & 2, .running = bits & 4,
                                          .slot_state = (uint8_t)slot, .slot_epoch = 5,
                                          .holder = bits & 8 ? MIG_DB_OTHER : MIG_DB_SELF,
                                          .db_up = bits & 16, .permitted = true, .db_epoch = 5,
                                          .db_host = "hostB"};
                    struct mig m;
                    struct mig_out out;

                    mig_init(&m);
                    m.state = (enum mig_state)s;
                    m.epoch = 5;
                    m.offer = 6;
                    m.link = bits & 32;
                    strcpy(m.peer, "hostB");
                    struct mig_event ev = {.type = (enum mig_event_type)e, .facts = &f,
                                           .epoch = 99, .host = "hostB"};
                    mig_step(&m, &ev, 1000, &out);
                    for (unsigned i = 0; i < out.n; i++)
                        if (e > MIG_EV_LINK_DOWN && e != MIG_EV_POLICY && e != MIG_EV_STARTED)
                            ck_assert_msg(out.a[i].what != MIG_DO_OPEN &&
                                              !(out.a[i].what == MIG_DO_STATE &&
                                                out.a[i].state == MOAT_SLOT_ACTIVE &&
                                                e != MIG_EV_TAKEN_BACK && e != MIG_EV_REQUEST),
                                          "event %d in state %s opens", e, mig_state_name(s));
                }
}
END_TEST

/* --- random histories ---------------------------------------------------------------------- */

static void accident(void)
{
    switch (rnd(12)) {
    case 0:
        w.lossy = true;
        break_conn((int)rnd(2));
        break;
    case 1: {
        int x = (int)rnd(2);
        w.lossy = true;
        if (w.h[x].alive)
            kill_agent(x);
        else
            start_agent(x);
        break;
    }
    case 2:
        w.db_up = !w.db_up;
        break;
    case 3:
        w.net_up = !w.net_up;
        w.lossy = true;
        if (!w.net_up) {
            break_conn(0);
            break_conn(1);
        }
        break;
    default:
        break;
    }
}

static void some_turns(bool accidents)
{
    for (unsigned n = rnd(30); n > 0; n--) {
        if (accidents)
            accident();
        turn();
    }
}

/* One attempt to move the VM away from s.  Returns where it is then. */
static int attempt(int s, bool accidents)
{
    int d = !s;

    plug(d);
    some_turns(accidents);
    qemu_connect(d);
    some_turns(accidents);
    if (rnd(4)) {
        w.h[s].logging = true;
        some_turns(accidents);
        if (!rnd(4)) { /* the guest reboots in the middle */
            engine_stop(&w.h[s]);
            some_turns(accidents);
            engine_start(&w.h[s]);
            some_turns(accidents);
        }
        if (!rnd(5)) { /* cancelled */
            w.h[s].logging = false;
            w.h[s].edges |= 1u << MIG_EV_PRECOPY_OFF;
            some_turns(accidents);
            qemu_quit(d);
            unplug(d);
            return s;
        }
    }
    engine_stop(&w.h[s]);
    some_turns(accidents);
    if (!rnd(4)) { /* failed: it resumes where it was */
        engine_start(&w.h[s]);
        some_turns(accidents);
        w.h[s].logging = false;
        qemu_quit(d);
        if (rnd(2))
            unplug(d);
        return s;
    }
    engine_start(&w.h[d]);
    some_turns(accidents);
    qemu_quit(s);
    if (rnd(2))
        unplug(s);
    return d;
}

static void heal(int at)
{
    w.db_up = w.net_up = true;
    for (int x = 0; x < 2; x++)
        if (!w.h[x].alive)
            start_agent(x);
    turns(400);
    ck_assert_msg(is_open(at), "seed %u: the VM runs on %c, which stays %s (%s); holder %d", w.first_seed,
                  'A' + at, mig_state_name(w.h[at].m.state),
                  moat_slot_state_name(w.h[at].state), w.holder);
    ck_assert_msg(!is_open(!at), "seed %u: %c is open too", w.first_seed, 'A' + !at);
    ck_assert_int_eq(w.holder, at);
    ck_assert_uint_eq(w.epoch, w.h[at].epoch);
}

START_TEST(histories)
{
    bool accidents = _i & 1;

    for (uint32_t k = 0; k < 150; k++) {
        uint32_t seed = (uint32_t)_i * 100003 + k * 7919 + 1;
        int at = 0;

        reset(seed);
        boot(0);
        for (int i = 0; i < 6; i++) {
            at = attempt(at, accidents);
            heal(at);
            w.alone = 0;
            /* A quiet world loses nothing. */
            if (!w.lossy)
                ck_assert_msg(w.h[at].full, "seed %u: sessions are lost", seed);
            w.h[at].full = true;
            w.lossy = false;
        }
    }
}
END_TEST

/* A seed that failed, printed step by step: test_migrate SEED [accidents] */
static uint32_t traced_seed;
static bool traced_accidents;

START_TEST(traced)
{
    int at = 0;

    w.trace = 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    reset(traced_seed);
    boot(0);
    for (int i = 0; i < 6; i++) {
        at = attempt(at, traced_accidents);
        printf("--- the VM is on %c\n", 'A' + at);
        heal(at);
        w.alone = 0;
    }
}
END_TEST

int main(int argc, char *argv[])
{
    Suite *s = suite_create("migrate");
    TCase *t = tcase_create("histories");

    tcase_set_timeout(t, 120);
    if (argc > 1) {
        traced_seed = (uint32_t)strtoul(argv[1], NULL, 10);
        traced_accidents = argc > 2;
        tcase_add_test(t, traced);
        suite_add_tcase(s, t);
        SRunner *one = srunner_create(s);
        srunner_set_fork_status(one, CK_NOFORK);
        srunner_run_all(one, CK_NORMAL);
        srunner_free(one);
        return 0;
    }
    tcase_add_test(t, first_slot);
    tcase_add_test(t, first_slot_late);
    tcase_add_loop_test(t, first_slot_of_an_orphan, 0, 2);
    tcase_add_test(t, plain_move);
    tcase_add_loop_test(t, roll_back, 0, 2);
    tcase_add_test(t, early_resume);
    tcase_add_loop_test(t, dead_source, 0, 2);
    tcase_add_test(t, two_vms);
    tcase_add_loop_test(t, permitted_late, 0, 2);
    tcase_add_test(t, who_may_ask);
    tcase_add_test(t, out_of_place);
    tcase_add_loop_test(t, histories, 0, 16);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
