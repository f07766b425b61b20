/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_COUNTERS_H
#define MOAT_COUNTERS_H 1

/* The one list of a slot's counters.  The fast path keeps them per thread, the
 * control socket sums them, moatctl prints them.  A slot's counters are an array
 * of MOAT_N_COUNTERS 64-bit words: first these, then one per drop reason for
 * each direction.  Append only. */

#include <stdint.h>

#include "moat/flow.h"

#define MOAT_COUNTERS(X)                                                                           \
    X(FROM_VM_PKTS, "from-vm.packets", "packets from the VM that passed")                          \
    X(FROM_VM_BYTES, "from-vm.bytes", "bytes from the VM that passed")                             \
    X(TO_VM_PKTS, "to-vm.packets", "packets to the VM that passed")                                \
    X(TO_VM_BYTES, "to-vm.bytes", "bytes to the VM that passed")                                   \
    X(SESSIONS_CREATED, "sessions.created", "sessions created")                                    \
    X(SESSIONS_EXPIRED, "sessions.expired", "sessions that timed out or closed")                   \
    X(SESSIONS_REJUDGED, "sessions.rejudged", "sessions judged again by a newer ruleset")          \
    X(SESSIONS_CUT, "sessions.cut", "sessions ended by a policy change")                           \
    X(SESSIONS_IMPORTED, "sessions.imported", "sessions that came with a migration")               \
    X(IMPORT_REFUSED, "sessions.import-refused", "session records refused")                        \
    X(PICKED_UP, "sessions.picked-up", "TCP sessions picked up mid-stream")                        \
    X(FAIL_ALLOWED, "fail-mode.allowed", "packets that passed because a fail mode says allow")     \
    X(LOG_LOST, "events.lost", "events lost because the ring was full")                            \
    X(RARP_PASSED, "rarp.passed", "the VM's own RARP announcements that passed")                   \
    X(HELD_POLLS, "hold.polls", "polls of the VM's ring put off while its state arrives")          \
    X(FRAGMENTS, "fragments.passed", "fragments that passed with their datagram")                  \
    X(FRAGMENTS_HELD, "fragments.held",                                                            \
      "fragments that came before the first one and waited for it")                                \
    X(UNBELIEVED, "tcp.unbelieved",                                                                \
      "TCP segments that passed without effect here: their receiver knows better")                 \
    X(ANSWERS, "reject.answers", "answers sent to refused packets")                                \
    X(ANSWERS_LIMITED, "reject.limited", "refused packets that got no answer: too many a second")  \
    X(WOULD_REFUSE, "enroll.would-refuse",                                                         \
      "packets that passed only because the vNIC is being enrolled")                               \
    X(TRACED, "trace.packets", "packets traced")                                                   \
    X(TRACE_LOST, "trace.lost", "packets that a trace lost because its ring was full")             \
    X(INJECT_LOST, "inject.lost", "answers and waiting fragments that found no room")

enum moat_counter {
#define X(SYM, NAME, TEXT) MOAT_C_##SYM,
    MOAT_COUNTERS(X)
#undef X
        MOAT_N_NAMED_COUNTERS
};

#define MOAT_C_DROP(DIR, REASON) (MOAT_N_NAMED_COUNTERS + (DIR)*MOAT_N_REASONS + (REASON))
#define MOAT_N_COUNTERS (MOAT_N_NAMED_COUNTERS + 2 * MOAT_N_REASONS)

static inline const char *moat_counter_name(unsigned c)
{
    static const char *const names[] = {
#define X(SYM, NAME, TEXT) NAME,
        MOAT_COUNTERS(X)
#undef X
    };
    return c < MOAT_N_NAMED_COUNTERS ? names[c] : "?";
}

#endif /* moat/counters.h */
