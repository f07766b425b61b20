/* SPDX-License-Identifier: Apache-2.0 */

#include <config.h>

#include "engine.h"

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

static struct moat_slot_info *slots;
static size_t n_slots;
static struct moat_port_info *ports;
static size_t n_ports;

void engine_init(const char *path, engine_event_fn *fn)
{
    ctl_path = xstrdup(path);
    event_fn = fn;
}

static void down(const char *why)
{
    if (ctl)
        VLOG_WARN("%s: %s", ctl_path, why);
    ovs_strlcpy(error, why, sizeof error);
    moat_ctl_close(ctl);
    moat_ctl_close(sub);
    ctl = sub = NULL;
    free(slots);
    free(ports);
    slots = NULL;
    ports = NULL;
    n_slots = n_ports = 0;
    retry_at = time_msec() + backoff;
    backoff = MIN(backoff * 2, BACKOFF_MAX_MS);
}

static void up(void)
{
    char why[256] = "";

    if (time_msec() < retry_at)
        return;
    if (moat_ctl_open(ctl_path, CALL_MS, &ctl, why, sizeof why) ||
        moat_ctl_open(ctl_path, CALL_MS, &sub, why, sizeof why)) {
        if (strcmp(error, why))
            VLOG_INFO_RL(&rl, "fast path: %s", why);
        moat_ctl_close(ctl);
        ctl = NULL;
        down(why);
        return;
    }
    int rc = moat_ctl_subscribe(sub); /* before the first list: nothing falls in between */
    if (rc) {
        down(moat_ctl_error(sub));
        return;
    }
    const struct moat_ctl_hello *h = moat_ctl_hello(ctl);
    VLOG_INFO("fast path %s, process %u, %u slots, %u sessions", h->engine, h->pid, h->slots_used,
              h->sessions_used);
    generation++;
    last_seq = 0;
    backoff = BACKOFF_MIN_MS;
    stale = true;
}

static void drain(void)
{
    struct moat_event ev;
    int rc = 0, i;

    for (i = 0; i < EVENTS_A_TURN && (rc = moat_ctl_next_event(sub, &ev)) > 0; i++) {
        if (last_seq && ev.seq != last_seq + 1)
            VLOG_WARN_RL(&rl, "%llu events of the fast path were lost",
                         (unsigned long long)(ev.seq - last_seq - 1));
        last_seq = ev.seq;
        if (ev.type != MOAT_EV_PACKET)
            stale = true;
        event_fn(&ev);
    }
    if (rc < 0)
        down(moat_ctl_error(sub));
    else if (i == EVENTS_A_TURN)
        poll_immediate_wake();
}

void engine_refresh(void)
{
    if (!ctl || !stale)
        return;
    struct moat_slot_info *s;
    struct moat_port_info *p;
    size_t ns, np;
    if (moat_ctl_slots(ctl, &s, &ns)) {
        down(moat_ctl_error(ctl));
        return;
    }
    free(slots);
    slots = s;
    n_slots = ns;
    if (moat_ctl_ports(ctl, &p, &np)) {
        down(moat_ctl_error(ctl));
        return;
    }
    free(ports);
    ports = p;
    n_ports = np;
    stale = false;
}

void engine_run(void)
{
    if (ctl && moat_ctl_is_dead(ctl))
        down(moat_ctl_error(ctl));
    if (!ctl)
        up();
    if (sub)
        drain();
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
    return ctl && !moat_ctl_is_dead(ctl);
}

unsigned engine_generation(void)
{
    return generation;
}

struct moat_ctl *engine_ctl(void)
{
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
