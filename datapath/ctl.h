/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_CTL_H
#define MOAT_DP_CTL_H 1

/* Server of the control socket (moat/ctl.h) and the engine's housekeeping.
 *
 * One thread owns it and calls moat_ctl_run_once() for ever.  Everything that comes in is
 * checked before the engine sees it; no client can make it wait. */

#include <stddef.h>
#include <sys/types.h>

struct moat_engine;
struct moat_ctl_server;

#define MOAT_CTL_MAX_CLIENTS 32
#define MOAT_CTL_TURN_MS 50 /* between two moat_engine_turn() */

struct moat_ctl_conf {
    struct moat_engine *engine;
    const char *path;              /* of the socket; its folder must be ours alone */
    uid_t uid;                     /* the peers' */
    void (*log)(const char *text); /* each kind of refusal, once; NULL: not */
};

/* Listens.  A socket that a dead process left is replaced, one that is served is not.
 * NULL with the reason in err. */
struct moat_ctl_server *moat_ctl_create(const struct moat_ctl_conf *, char *err, size_t err_size);

/* Closes all connections and removes the socket.  NULL is harmless. */
void moat_ctl_destroy(struct moat_ctl_server *);

/* Waits up to timeout_ms for something to do, never longer than until the engine's next
 * turn, and does it. */
void moat_ctl_run_once(struct moat_ctl_server *, int timeout_ms);

#endif /* datapath/ctl.h */
