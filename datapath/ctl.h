/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_CTL_H
#define MOAT_DP_CTL_H 1

/* Server of the control socket (moat/ctl.h) and the engine's housekeeping.
 *
 * One thread owns it and calls moat_ctl_run_once() for ever.  Everything that comes in is
 * checked before the engine sees it; no client can make it wait. */

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct moat_engine;
struct moat_ctl_server;
struct moat_ctl_replaced;

#define MOAT_CTL_MAX_CLIENTS 32
#define MOAT_CTL_TURN_MS 50 /* between two moat_engine_turn() */

/* How another engine takes this one's place; both as in struct moat_switch (loader/engine_abi.h).
 */
struct moat_ctl_exchange {
    int (*begin)(const char *file, char *err, size_t err_size);
    int (*end)(struct moat_ctl_replaced *, char *err, size_t err_size);
};

struct moat_ctl_conf {
    struct moat_engine *engine;
    const char *path;              /* of the socket; its folder must be ours alone */
    uid_t uid;                     /* the peers' */
    void (*log)(const char *text); /* each kind of refusal, once; NULL: not */
    int listen_fd;                 /* of another engine's server of this path, copied; 0: none */
    const struct moat_ctl_exchange *exchange; /* NULL: this engine stays */
};

/* Listens.  A socket that a dead process left is replaced, one that is served is not.
 * NULL with the reason in err. */
struct moat_ctl_server *moat_ctl_create(const struct moat_ctl_conf *, char *err, size_t err_size);

/* Closes all connections and removes the socket, unless another engine has it now.  NULL is
 * harmless. */
void moat_ctl_destroy(struct moat_ctl_server *);

/* The descriptor that it listens on, which stays its own. */
int moat_ctl_listen_fd(const struct moat_ctl_server *);

/* Waits up to timeout_ms for something to do, never longer than until the engine's next
 * turn, and does it.  False: another engine serves now, nothing is left to do but to destroy this.
 */
bool moat_ctl_run_once(struct moat_ctl_server *, int timeout_ms);

#endif /* datapath/ctl.h */
