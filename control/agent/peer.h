/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_PEER_H
#define MOAT_AGENT_PEER_H 1

/* Connections to other agents: frames (wire.h) over mutual TLS.
 *
 * The other side is who its certificate says: peer_host() is the common name of
 * a certificate that the cluster's CA signed.  A connection without one is
 * closed before a byte of it is read. */

#include <stdbool.h>
#include <stddef.h>

struct peer;
struct wire;

/* What happens on a connection.  Between `closed` and the next call the peer is
 * freed: forget it. */
struct peer_ops {
    void (*connected)(struct peer *);
    void (*frame)(struct peer *, const struct wire *);
    void (*closed)(struct peer *, const char *why);
    bool (*is_host)(const char *name); /* is there a host of this name? */
    void (*refused)(const char *who, const char *why); /* before it was a peer */
};

/* Listens on "pssl:PORT[:IP]".  0 or errno. */
int peer_init(const char *listen, const struct peer_ops *);
void peer_run(void);
void peer_wait(void);
void peer_exit(void);

/* Begins to connect to "ssl:IP:PORT", where `host` must answer.  NULL if that is
 * no such address. */
struct peer *peer_open(const char *address, const char *host, void *owner);

/* False if the frame cannot be made or too much waits to be sent: the connection
 * is then closed. */
bool peer_send(struct peer *, const struct wire *);
size_t peer_backlog(const struct peer *); /* bytes not sent yet */

/* Forgets the connection at once as far as the caller is concerned (`closed` is
 * not called); what waits is still sent, for a bounded time. */
void peer_close(struct peer *);

const char *peer_host(const struct peer *);
bool peer_is_incoming(const struct peer *);
long long peer_last_heard(const struct peer *);
void *peer_owner(const struct peer *);
void peer_set_owner(struct peer *, void *);

/* For moat/status. */
unsigned peer_count(void);
unsigned long long peer_n_refused(void);
const char *peer_listening(void); /* NULL: not */

#endif /* peer.h */
