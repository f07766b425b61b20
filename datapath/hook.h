/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_HOOK_H
#define MOAT_DP_HOOK_H 1

/* Where the filter meets the vhost library: vids to ports, mbufs to packets, verdicts
 * to what the switch expects of a burst.  The functions are those of moat_engine_ops
 * (loader/engine_abi.h). */

#include "engine.h"
#include "loader/engine_abi.h"

/* Before anything else.  EAL is up.  0, or negative errno with the reason in err. */
int hook_init(struct moat_engine *, const struct moat_switch *, char *err, size_t err_size);

/* In the gate, when the engine has taken over: the vids that its predecessor knows by port. */
void hook_take_over(int (*port_of_vid)(int vid));
int hook_port_of_vid(int vid); /* the port's index; -1: none */

moat_dequeue_fn hook_dequeue;
moat_enqueue_fn hook_enqueue;

/* moat_engine_conf's `inject`, of ports that hook_port_register() made.  What finds no room is
 * counted at the port's slot (inject.lost).  The VM gets frames of up to
 * MOAT_PENDING_FRAME_MAX bytes at once; those from it leave with the next dequeue from
 * any of its queues. */
moat_inject_fn hook_inject;

int hook_port_register(const char *path);
void hook_connected(int vid);
void hook_started(int vid);
void hook_logging(int vid, int on);
void hook_stopped(int vid);
void hook_disconnected(int vid);

#endif /* datapath/hook.h */
