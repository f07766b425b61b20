/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_PIPE_H
#define MOAT_DP_PIPE_H 1

/* The burst, pass by pass: parse and hash all, look up all, track state, classify
 * the misses, verdict.  No vhost here. */

#include <stdint.h>

#include "moat/flow.h"

#include "parse.h"

#define MOAT_BURST_MAX 32

struct moat_thread;
struct moat_port;

/* Judges n <= MOAT_BURST_MAX packets that the VM behind `port` sent (MOAT_FROM_VM) or
 * is about to get (MOAT_TO_VM).  The caller has set data, len and total of each.
 * Bit i of the result: packet i passes.  Counts, logs, creates and updates sessions;
 * to be called once per packet.  Packet threads only.
 *
 * `by`, `rule` and `reason` say what decided; but nothing is written into what the straight line
 * passes (live.h).  Who wants to explain packets sets `by` to MOAT_BY_SESSION before. */
uint32_t moat_pipe_burst(struct moat_thread *, struct moat_port *, enum moat_dir,
                         struct moat_pkt *pkts, unsigned n);

#endif /* datapath/pipe.h */
