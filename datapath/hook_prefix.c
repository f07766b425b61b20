/* SPDX-License-Identifier: Apache-2.0 */

/* A note lives from one call to the next of the same thread.  Every call uses it up,
 * whether it fits or not, so it cannot be taken for a later batch's. */

#include "hook_prefix.h"

bool hook_recall(struct hook_note *note, const struct hook_io *io, void *ctx, int vid,
                 uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    bool same = note->vid == vid && note->queue == queue && note->at == pkts && note->left == n;

    note->left = 0;
    for (unsigned i = 0; same && i < note->judged; i++)
        same = io->unmark(ctx, pkts[i]);
    return same;
}

void hook_remember(struct hook_note *note, const struct hook_io *io, void *ctx, int vid,
                   uint16_t queue, struct rte_mbuf **pkts, unsigned left, unsigned m, uint32_t pass)
{
    *note = (struct hook_note){pkts, vid, queue, (uint16_t)left, (uint16_t)m, pass};
    for (unsigned i = 0; i < m; i++)
        io->mark(ctx, pkts[i]);
}
