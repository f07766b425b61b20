/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_LOADER_EXCHANGE_H
#define MOAT_LOADER_EXCHANGE_H 1

/* The engine that serves, and how another one takes its place (engine_abi.h). */

#include <pthread.h>
#include <stddef.h>

#include "engine_abi.h"

/* Held for reading by whoever calls the table for other things than packets; while it is held, the
 * table stays. */
extern pthread_rwlock_t exchange_ports;

/* Starts the first engine, from this file, which is also the default for later ones.  NULL with the
 * reason in err. */
const struct moat_engine_ops *exchange_start(const struct moat_switch *vhost, const char *file,
                                             char *err, size_t err_size);

#endif /* datapath/loader/exchange.h */
