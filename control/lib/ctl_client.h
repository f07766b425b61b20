/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_CTL_CLIENT_H
#define MOAT_CTL_CLIENT_H 1

/* Client of the fast path's control socket (moat/ctl.h).
 *
 * Two ways of use:
 *  - requests: each call sends one request and waits for its answer, up to the
 *    connection's time-out;
 *  - events: after moat_ctl_subscribe() the connection is for events only:
 *    poll moat_ctl_fd() and drain it with moat_ctl_next_event(), which never
 *    blocks.  Use a second connection for requests.
 *  - traced packets: the same with moat_ctl_trace() and moat_ctl_next_traced().
 * When another engine takes over, all connections end: make new ones.
 *
 * A connection belongs to one thread.  All functions return 0 (or a count) or a
 * negative errno; moat_ctl_error() then says why in words: the engine's own
 * words if it refused.  After an error of the connection itself (time-out,
 * engine gone, malformed answer) moat_ctl_is_dead() is true and each further
 * call fails at once with -ENOTCONN: close it and open another.  NULL is a dead connection.
 *
 * libc only, so that tests and tools need nothing else. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"
#include "moat/session.h"

struct moat_ctl;

#define MOAT_CTL_PATH "/run/moat/moat.ctl"
#define MOAT_CTL_TIMEOUT_MS 3000

/* Connects and says HELLO; another version is refused with -EPROTONOSUPPORT.
 * On failure *cp is NULL and `why` (if not NULL) has the reason. */
int moat_ctl_open(const char *path, int timeout_ms, struct moat_ctl **cp, char *why,
                  size_t why_size);
/* The same without HELLO, for moat_ctl_replace() only: an engine of any version. */
int moat_ctl_connect(const char *path, int timeout_ms, struct moat_ctl **cp, char *why,
                     size_t why_size);
void moat_ctl_close(struct moat_ctl *); /* NULL does nothing */

const struct moat_ctl_hello *moat_ctl_hello(const struct moat_ctl *); /* of the last HELLO */
int moat_ctl_hello_again(struct moat_ctl *);                          /* refreshes it */
int moat_ctl_fd(const struct moat_ctl *);
bool moat_ctl_is_dead(const struct moat_ctl *);
bool moat_ctl_has_ended(const struct moat_ctl *); /* dead, or the other end has closed it */
const char *moat_ctl_error(const struct moat_ctl *);

/* One request.  `fd` goes along if it is not negative (it stays the caller's).
 * The reply's body lives in the connection until the next call. */
struct moat_ctl_reply {
    const void *body;
    size_t len;
    int fd; /* -1, or a descriptor that is now the caller's */
};
int moat_ctl_call(struct moat_ctl *, enum moat_ctl_type, const void *body, size_t len, int fd,
                  struct moat_ctl_reply *);

/* Another engine.  replace() asks for it: `file` as the switch sees it, absolute; "": the one that
 * the switch starts with.  replaced() waits for the answer, which may take as long as a table of
 * millions of sessions takes to copy: 1: it has happened, and this connection has ended; 0: not
 * yet, ask again; or error: refused, and the engine goes on, or the connection was lost. */
#define MOAT_CTL_REPLACE_TIMEOUT_MS 120000
int moat_ctl_replace(struct moat_ctl *, const char *file);
int moat_ctl_replaced(struct moat_ctl *, int timeout_ms, struct moat_ctl_replaced *);

/* Slots. */
int moat_ctl_claim(struct moat_ctl *, const struct moat_slot_conf *);
int moat_ctl_release(struct moat_ctl *, const char *vnic);
int moat_ctl_set_state(struct moat_ctl *, const struct moat_ctl_state *);
int moat_ctl_handed_over(struct moat_ctl *, const char *vnic);
int moat_ctl_flush(struct moat_ctl *, const char *vnic);

/* Lists.  *out is malloc'd, free() it (it is NULL if n is 0). */
int moat_ctl_slots(struct moat_ctl *, struct moat_slot_info **out, size_t *n);
int moat_ctl_ports(struct moat_ctl *, struct moat_port_info **out, size_t *n);
int moat_ctl_rule_hits(struct moat_ctl *, const char *vnic, struct moat_rule_hit **out, size_t *n);
int moat_ctl_counters(struct moat_ctl *, const char *vnic, uint64_t out[MOAT_N_COUNTERS]);

/* Rulesets, by sealed memfd.  get: *blob is malloc'd; sizes beyond
 * MOAT_RULESET_VNIC_MAX and descriptors that are not sealed are refused.
 * -ENOENT: the slot has none. */
int moat_ctl_ruleset_put(struct moat_ctl *, const char *vnic, const void *blob, size_t size);
int moat_ctl_ruleset_get(struct moat_ctl *, const char *vnic, void **blob, size_t *size);

/* Sessions, one page at a time.
 *     struct moat_ctl_page page = MOAT_CTL_PAGE(vnic, since_s);
 *     while ((rc = moat_ctl_sessions(c, &page)) > 0)
 *         while (moat_ctl_frame_next(&page.frames, &page.left, &rec)) ...
 * vnic "" means all slots: page.vnic then tells whose this page is.  Frames live
 * in the connection until the next call. */
struct moat_ctl_page {
    struct moat_ctl_sessions ask;
    bool started;
    uint64_t now_s;         /* the engine's clock at the first page */
    const uint8_t *frames;
    size_t left;            /* bytes in `frames` */
    uint32_t n;             /* records in `frames` */
    char vnic[MOAT_ID_MAX];
};
void moat_ctl_page_init(struct moat_ctl_page *, const char *vnic, uint64_t since_s);
int moat_ctl_sessions(struct moat_ctl *, struct moat_ctl_page *); /* 1 page, 0 end, or error */

/* Length of the first frame of n bytes (checksum and record), 0 if there is none
 * or it is malformed.  Looks at lengths only. */
size_t moat_ctl_frame_len(const uint8_t *, size_t n);
/* Decodes the first frame and steps over it.  False at the end or if malformed. */
bool moat_ctl_frame_next(const uint8_t **, size_t *left, struct moat_ses_rec *);

/* Gives frames to an ARRIVING slot, in as many requests as it takes. */
int moat_ctl_import(struct moat_ctl *, const char *vnic, bool same_policy, const uint8_t *frames,
                    size_t len, struct moat_ctl_import_reply *sum);

/* Events. */
int moat_ctl_subscribe(struct moat_ctl *);
int moat_ctl_next_event(struct moat_ctl *, struct moat_event *); /* 1 event, 0 none now, or error */

/* Traces.  ask->n_insns instructions of the filter follow. */
int moat_ctl_trace(struct moat_ctl *, const struct moat_ctl_trace *ask,
                   const struct moat_trace_insn *);
/* 1 packet, 0 none now, or error.  *data has its cap_len bytes, until the next call. */
int moat_ctl_next_traced(struct moat_ctl *, struct moat_traced *, const uint8_t **data);

#endif /* ctl_client.h */
