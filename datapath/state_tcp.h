/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_STATE_TCP_H
#define MOAT_DP_STATE_TCP_H 1

/* TCP state tracking of one session, as seen in the middle of the path
 * (G. van Rooij, "Real Stateful TCP Packet Filtering in IP Filter", 2001;
 * RFC 9293; RFC 7323 window scaling; RFC 5961 challenge ACKs).  Pure.
 *
 * side[d] belongs to the end that sends in direction d (enum moat_dir).
 * Threads: a packet in direction d writes side[d].{seq_lo,max_win,wscale} and
 * side[!d].seq_hi; `state` of both by compare-and-swap upwards.  Thus the two
 * directions may run on two threads.  All accesses are relaxed atomics. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/flow.h"
#include "moat/session.h"
#include "moat/settings.h"

#include "parse.h"

/* State of one end; only ever rises while a connection lives. */
enum moat_tcp_state {
    MOAT_TCPS_NONE = 0,        /* nothing sent yet */
    MOAT_TCPS_SYN_SENT = 1,    /* SYN seen from it */
    MOAT_TCPS_ESTABLISHED = 2, /* its SYN was acknowledged */
    MOAT_TCPS_CLOSING = 3,     /* FIN seen from it */
    MOAT_TCPS_FIN_ACKED = 4,   /* its FIN was acknowledged */
    MOAT_TCPS_RESET = 5,       /* either end reset the connection */
    MOAT_N_TCP_STATES
};

/* First packet of a session.  Fills both sides.  MOAT_R_NONE, or why no session
 * may start with this segment: strict: only a pure SYN opens (MOAT_R_TCP_NO_SESSION
 * otherwise); loose: any segment but RST and SYN|ACK-less oddities; windows are then
 * learnt from the first packets of each side. */
enum moat_reason moat_tcp_open(struct moat_ses_side side[2], unsigned dir,
                               const struct moat_tcp_seg *, bool loose);

/* A further packet.  MOAT_R_NONE: passes, sides updated.  MOAT_R_TCP_WINDOW or
 * MOAT_R_TCP_STATE: refused, nothing changed.  `lenient` (imported sessions until
 * one packet was seen each way): a segment within a window's distance of what is
 * known is believed and the bounds are moved to it. */
enum moat_reason moat_tcp_track(struct moat_ses_side side[2], unsigned dir,
                                const struct moat_tcp_seg *, bool lenient);

/* True if this segment starts a new connection on the tuple of a session that is
 * over (both FINs acknowledged, or reset): the caller forgets the old one and opens. */
bool moat_tcp_reopens(const struct moat_ses_side side[2], const struct moat_tcp_seg *);

enum moat_timer moat_tcp_timer(const struct moat_ses_side side[2]);

/* True if an imported record's states and windows are possible. */
bool moat_tcp_valid(const struct moat_ses_side side[2]);

#endif /* datapath/state_tcp.h */
