/* SPDX-License-Identifier: Apache-2.0 */

/* Rounds overlap by a second on purpose: the engine stamps sessions by the second,
 * so a round asks for what has changed since the second in which the one before
 * it began.  A record that comes twice overwrites itself. */

#include <config.h>

#include "feed.h"

#include <string.h>

#include "ctl_client.h"
#include "engine.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/vlog.h"
#include "peer.h"
#include "timeval.h"
#include "util.h"
#include "wire.h"

VLOG_DEFINE_THIS_MODULE(feed);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(5, 10);

#define ROUND_MS 200
#define BACKLOG_MAX (1u << 20) /* more only when the other side has taken it */
#define PAGES_A_TURN 64

static void begin_round(struct feed *f, uint64_t since_s)
{
    f->phase = FEED_PAGES;
    f->since_s = since_s;
    f->cursor = 0;
    f->first_page = true;
    f->final_round = f->final;
    f->round++;
}

void feed_count_anew(struct feed *f)
{
    f->records = 0;
}

void feed_start(struct feed *f, const char *vnic, bool transfer)
{
    uint64_t records = f->records;

    memset(f, 0, sizeof *f);
    f->records = records;
    ovs_strlcpy(f->vnic, vnic, sizeof f->vnic);
    f->transfer = transfer;
    begin_round(f, 0);
}

void feed_final(struct feed *f, uint64_t offer)
{
    f->final = true;
    f->offer = offer;
    if (f->phase == FEED_REST)
        begin_round(f, f->round_s);
}

void feed_stop(struct feed *f)
{
    f->phase = FEED_OFF;
}

static bool send_page(struct feed *f, struct peer *p, bool *more)
{
    struct moat_ctl_page page;
    struct moat_ctl *ctl = engine_ctl();

    *more = false;
    if (!ctl)
        return false;
    moat_ctl_page_init(&page, f->vnic, f->since_s);
    page.ask.cursor = f->cursor;
    int rc = moat_ctl_sessions(ctl, &page);
    if (rc < 0) {
        VLOG_WARN_RL(&rl, "%s: sessions: %s", f->vnic, moat_ctl_error(ctl));
        return false;
    }
    if (f->first_page)
        f->round_s = page.now_s;
    f->first_page = false;
    f->cursor = page.ask.cursor;
    f->records += page.n;
    if (f->final) {
        f->final_records += page.n;
        f->final_bytes += page.left;
    }
    *more = f->cursor != 0;
    if (!page.n)
        return true;
    struct wire w = {.type = WIRE_SESSIONS,
                     .round = f->round,
                     .n = page.n,
                     .blob = page.frames,
                     .blob_len = page.left};
    return peer_send(p, &w);
}

static bool send_final(struct feed *f, struct peer *p)
{
    const struct moat_slot_info *slot = engine_slot(f->vnic);
    struct wire w = {.type = WIRE_FINAL,
                     .flags = f->transfer ? 0 : WIRE_FINAL_NO_SESSIONS,
                     .epoch = f->offer,
                     .round = f->round,
                     .records = f->records,
                     .final_records = f->final_records,
                     .final_bytes = f->final_bytes,
                     .live = slot ? slot->sessions : 0};

    f->phase = FEED_SENT;
    return peer_send(p, &w);
}

static bool end_round(struct feed *f, struct peer *p)
{
    if (f->final_round)
        return send_final(f, p);
    struct wire w = {.type = WIRE_ROUND, .round = f->round, .records = f->records};
    if (!peer_send(p, &w))
        return false;
    f->phase = FEED_REST;
    f->next_round = time_msec() + ROUND_MS;
    if (f->final) /* it stopped while this round was under way */
        begin_round(f, f->round_s);
    return true;
}

bool feed_run(struct feed *f, struct peer *p)
{
    if (f->phase == FEED_REST && time_msec() >= f->next_round)
        begin_round(f, f->round_s);
    for (int i = 0; f->phase == FEED_PAGES && i < PAGES_A_TURN; i++) {
        bool more = false;

        if (peer_backlog(p) > BACKLOG_MAX)
            return true;
        if (f->transfer && !send_page(f, p, &more))
            return false;
        if (!more && !end_round(f, p))
            return false;
    }
    return true;
}

void feed_wait(const struct feed *f)
{
    if (f->phase == FEED_REST)
        poll_timer_wait_until(f->next_round);
    else if (f->phase == FEED_PAGES)
        poll_timer_wait(1); /* the connection wakes us sooner when it drains */
}
