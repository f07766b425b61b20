/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_TRACE_H
#define MOAT_DP_TRACE_H 1

/* Explaining packets: what a slot did with each, and why.
 *
 * moat_explain() says it of one packet behind its burst; the offline replay uses it too.
 * A trace is a filter (classic BPF) and a ring from the packet threads to the control
 * thread.  Without a trace a burst reads one pointer.
 *
 * Threads: moat_trace_burst() on packet threads, within the burst; the others on the control
 * thread. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moat/ctl.h"

#include "parse.h"

#define MOAT_TRACES_MAX 8
#define MOAT_TRACE_CELLS 1024 /* packets that wait for the control thread; a power of two */

struct moat_engine;
struct moat_thread;
struct moat_trace;
struct moat_view;

/* Packet p has been judged in a burst under `view`: fills *out but for seq, time_us and
 * cap_len.  Of p, what it says about itself is read again, however much of it was parsed; `by`
 * and `rule` tell who decided, `reason` counts if it was refused or passed only because the
 * slot is being enrolled.  Within the burst's QSBR section. */
void moat_explain(struct moat_thread *, const struct moat_view *view, enum moat_dir,
                  const struct moat_pkt *p, bool passed, struct moat_traced *out);

/* Starts a trace: ask->n_insns instructions follow.  Checks everything in *ask, and the filter:
 * known instructions, jumps forward and inside, an end.  NULL with the reason in err and errno:
 * EINVAL, ENOENT (no such vNIC), EUSERS (too many traces) or ENOMEM. */
struct moat_trace *moat_trace_start(struct moat_engine *, const struct moat_ctl_trace *ask,
                                    const struct moat_trace_insn *, char *err, size_t err_size);
/* Waits for a grace period.  NULL is harmless. */
void moat_trace_stop(struct moat_engine *, struct moat_trace *);

/* Takes the next packet: *out, and out->cap_len bytes to data (MOAT_TRACE_SNAPLEN_MAX).  False:
 * none. */
bool moat_trace_take(struct moat_trace *, struct moat_traced *out, uint8_t *data);

/* From the pipe, if the engine has traces: those that want a packet of this burst get it. */
void moat_trace_burst(struct moat_thread *, const struct moat_view *, enum moat_dir,
                      const struct moat_pkt *pkts, unsigned n, uint32_t passed);

#endif /* datapath/trace.h */
