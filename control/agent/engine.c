/* SPDX-License-Identifier: Apache-2.0 */

/*   away --up()--> up --the connections end--> follow(): is there a successor?
 *    ^                                             |          |
 *    +----------------------down()---- no ---------+         yes: still up
 *
 * When another engine takes over, all connections end, and it listens at once on the same socket,
 * with all that the one before had.  So nobody here need notice: the connections are made again
 * where the loss is seen, which may be in the middle of a turn; the lists stay until they are
 * read again. */

#include <config.h>

#include "engine.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "openvswitch/poll-loop.h"
#include "openvswitch/vlog.h"
#include "timeval.h"
#include "util.h"

VLOG_DEFINE_THIS_MODULE(engine);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(5, 10);

#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 250 /* the engine starts with the first VM, which waits for us */
#define EVENTS_A_TURN 512
#define CALL_MS 2000

static char *ctl_path;
static engine_event_fn *event_fn;
static struct moat_ctl *ctl, *sub;
static unsigned generation;
static long long retry_at;
static int backoff = BACKOFF_MIN_MS;
static char error[256] = "not tried yet";
static uint64_t last_seq;
static bool stale;
static bool is_gone;       /* found out in this turn: asking again may cost CALL_MS */
static bool told_replaced; /* this connection's engine took over from one that we knew */

static struct moat_slot_info *slots;
static size_t n_slots;
static struct moat_port_info *ports;
static size_t n_ports;

void engine_init(const char *path, engine_event_fn *fn)
{
    ctl_path = xstrdup(path);
    event_fn = fn;
}

static void disconnect(void)
{
    moat_ctl_close(ctl);
    moat_ctl_close(sub);
    ctl = sub = NULL;
}

static void down(const char *why)
{
    if (ctl)
        VLOG_WARN("%s: %s", ctl_path, why);
    ovs_strlcpy(error, why, sizeof error);
    disconnect();
    free(slots);
    free(ports);
    slots = NULL;
    ports = NULL;
    n_slots = n_ports = 0;
    retry_at = time_msec() + backoff;
    backoff = MIN(backoff * 2, BACKOFF_MAX_MS);
}

/* Both connections, subscribed before the first list: nothing falls in between.  If not, why, and
 * nothing is open. */
static int open_both(struct moat_ctl **c, struct moat_ctl **s, char *why, size_t why_size)
{
    int rc = moat_ctl_open(ctl_path, CALL_MS, c, why, why_size);

    *s = NULL;
    if (rc)
        return rc;
    rc = moat_ctl_open(ctl_path, CALL_MS, s, why, why_size);
    if (!rc) {
        rc = moat_ctl_subscribe(*s);
        if (!rc)
            return 0;
        snprintf(why, why_size, "%s", moat_ctl_error(*s));
    }
    moat_ctl_close(*c);
    moat_ctl_close(*s);
    *c = *s = NULL;
    return rc;
}

static void began(void)
{
    generation++;
    last_seq = 0;
    backoff = BACKOFF_MIN_MS;
    stale = true;
}

static void up(void)
{
    char why[256] = "";

    if (time_msec() < retry_at)
        return;
    if (open_both(&ctl, &sub, why, sizeof why)) {
        if (strcmp(error, why))
            VLOG_INFO_RL(&rl, "fast path: %s", why);
        down(why);
        return;
    }
    const struct moat_ctl_hello *h = moat_ctl_hello(ctl);
    VLOG_INFO("fast path %s, process %u, %u slots, %u sessions", h->engine, h->pid, h->slots_used,
              h->sessions_used);
    told_replaced = false;
    began();
}

/* At most `most` events of the connection; how many, or an error. */
static int deliver(int most)
{
    struct moat_event ev;
    int rc = 0, i;

    for (i = 0; i < most && (rc = moat_ctl_next_event(sub, &ev)) > 0; i++) {
        if (last_seq && ev.seq != last_seq + 1)
            VLOG_WARN_RL(&rl, "%llu events of the fast path were lost",
                         (unsigned long long)(ev.seq - last_seq - 1));
        last_seq = ev.seq;
        if (ev.type != MOAT_EV_PACKET)
            stale = true;
        if (ev.type != MOAT_EV_REPLACED || !told_replaced)
            event_fn(&ev);
    }
    return rc < 0 ? rc : i;
}

/* Its own event may come before we listen, and be lost; a HELLO is not. */
static void tell_replaced(const struct moat_ctl_hello *was, const struct moat_ctl_hello *is)
{
    struct moat_event ev = {
        .type = MOAT_EV_REPLACED, .time_us = (uint64_t)time_wall_usec(), .value = is->gate_us};

    char *text = xasprintf("engine %s took over from %s, packets had to wait for %u us; %s",
                           is->engine, was->engine, is->gate_us, is->file);

    VLOG_INFO("%s; %u slots, %u sessions", text, is->slots_used, is->sessions_used);
    ovs_strlcpy(ev.text, text, sizeof ev.text);
    free(text);
    told_replaced = true;
    event_fn(&ev);
}

/* The same to the engine that took over from `was`.  False: there is none, or nobody answers. */
static bool open_successor(const struct moat_ctl_hello *was, struct moat_ctl **c,
                           struct moat_ctl **s)
{
    const struct moat_ctl_hello *is;
    char why[256];
    int rc, i = 0;

    do {
        rc = open_both(c, s, why, sizeof why);
    } while ((rc == -ECONNRESET || rc == -EPIPE) && ++i < 3); /* it was replaced as well */
    if (rc)
        return false;
    is = moat_ctl_hello(*c);
    if (is->pid == was->pid && is->replacements > was->replacements)
        return true;
    /* A switch that was started anew: nothing of this turn is about it. */
    moat_ctl_close(*c);
    moat_ctl_close(*s);
    return false;
}

/* The connections have ended.  True if another engine has taken over, and we are connected to it.
 */
static bool follow(void)
{
    struct moat_ctl_hello was = *moat_ctl_hello(ctl);
    struct moat_ctl *c, *s;

    if (is_gone || !open_successor(&was, &c, &s)) {
        is_gone = true;
        return false;
    }
    deliver(INT_MAX); /* what the one before had still said */
    disconnect();
    ctl = c;
    sub = s;
    began();
    tell_replaced(&was, moat_ctl_hello(ctl));
    return true;
}

static void lost(const char *why)
{
    char text[256];

    ovs_strlcpy(text, why, sizeof text);
    if (!follow())
        down(text);
}

static void drain(void)
{
    int n = deliver(EVENTS_A_TURN);

    if (n < 0)
        lost(moat_ctl_error(sub));
    else if (n == EVENTS_A_TURN)
        poll_immediate_wake();
}

static bool read_lists(void)
{
    struct moat_slot_info *s;
    struct moat_port_info *p;
    size_t ns, np;

    if (moat_ctl_slots(ctl, &s, &ns))
        return false;
    if (moat_ctl_ports(ctl, &p, &np)) {
        free(s);
        return false;
    }
    free(slots);
    free(ports);
    slots = s;
    n_slots = ns;
    ports = p;
    n_ports = np;
    stale = false;
    return true;
}

void engine_refresh(void)
{
    for (int i = 0; i < 2 && ctl && stale; i++)
        if (!read_lists())
            lost(moat_ctl_error(ctl));
}

void engine_run(void)
{
    is_gone = false;
    if (sub)
        drain();
    if (ctl && moat_ctl_is_dead(ctl))
        lost(moat_ctl_error(ctl));
    if (!ctl) {
        up();
        if (sub)
            drain();
    }
    engine_refresh();
}

void engine_wait(void)
{
    if (!sub) {
        poll_timer_wait_until(retry_at);
    } else {
        poll_fd_wait(moat_ctl_fd(sub), POLLIN);
        if (stale)
            poll_immediate_wake();
    }
}

void engine_exit(void)
{
    moat_ctl_close(ctl);
    moat_ctl_close(sub);
    free(slots);
    free(ports);
    free(ctl_path);
}

bool engine_up(void)
{
    return ctl && (!moat_ctl_is_dead(ctl) || follow());
}

unsigned engine_generation(void)
{
    return generation;
}

struct moat_ctl *engine_ctl(void)
{
    if (ctl && moat_ctl_has_ended(ctl))
        follow();
    return engine_up() ? ctl : NULL;
}

const char *engine_error(void)
{
    return engine_up() ? moat_ctl_error(ctl) : error;
}

void engine_touch(void)
{
    stale = true;
}

const struct moat_slot_info *engine_slot(const char *vnic)
{
    for (size_t i = 0; i < n_slots; i++)
        if (!strcmp(slots[i].conf.vnic, vnic))
            return &slots[i];
    return NULL;
}

const struct moat_slot_info *engine_slot_of_path(const char *path)
{
    for (size_t i = 0; i < n_slots; i++)
        if (!strcmp(slots[i].conf.path, path))
            return &slots[i];
    return NULL;
}

size_t engine_slots(const struct moat_slot_info **out)
{
    *out = slots;
    return n_slots;
}

size_t engine_ports(const struct moat_port_info **out)
{
    *out = ports;
    return n_ports;
}
