"use client";
import { wsconnect, type Msg, type NatsConnection } from "@nats-io/nats-core";
import { createContext, useContext, useEffect, useEffectEvent, useState, type ReactNode } from "react";

/** The relay's NATS_RESYNC_SUBJECT: what is published here means that anything may have been missed. */
const RESYNC = "relayed.cache.resync";

const Connection = createContext<NatsConnection | undefined>(undefined);

/** One connection for all pages below: put it into a layout, which stays when the visitor navigates. */
export function NatsProvider({ children }: { children: ReactNode }) {
  const [connection, setConnection] = useState<NatsConnection>();
  useEffect(() => {
    const stop = new AbortController();
    void stayConnected(setConnection, stop.signal);
    return () => stop.abort();
  }, []);
  return <Connection value={connection}>{children}</Connection>;
}

export const useNatsStatus = () => (useContext(Connection) ? "connected" : "connecting");

/**
 * Calls back for each message relayed on the subject, which may have wildcards. Calls back with null when messages may have been
 * missed, and what is shown has to be fetched again: once the subscription stands, after a reconnect, and after a resync.
 */
export function useRelayed(subject: string, callback: (message: Msg | null) => void) {
  const connection = useContext(Connection);
  const call = useEffectEvent(callback);
  useEffect(() => {
    if (!connection || connection.isClosed()) return;
    let ended = false;
    const subscriptions = [subject, RESYNC].map((name) =>
      connection.subscribe(name, {
        callback: (error, message) => {
          if (error) console.error(`${name}: ${error.message}`);
          else if (name === RESYNC) call(null);
          else if (message.subject !== RESYNC) call(message);
        },
      }),
    );
    // The server has the subscriptions when it answers: from now on nothing is missed, but before something may have been.
    connection.flush().then(() => ended || call(null), () => {});
    return () => {
      ended = true;
      for (const subscription of subscriptions) subscription.unsubscribe();
    };
  }, [connection, subject]);
}

/** Keeps a connection until it is told to stop. Each one has a new session, and replaces the one before while that is still valid. */
async function stayConnected(use: (connection: NatsConnection | undefined) => void, stop: AbortSignal) {
  let current: NatsConnection | undefined;
  let failures = 0;
  stop.addEventListener("abort", () => void current?.close());
  while (!stop.aborted) {
    try {
      const response = await fetch("/api/nats/session", { method: "POST", signal: stop });
      if (!response.ok) throw new Error(`no session: ${response.status}`);
      const { url, seconds } = (await response.json()) as { url: string; seconds: number };
      // nats-server reads the session from the cookie when a connection is made. The client's own reconnect could use an expired one.
      const next = await wsconnect({ servers: url, reconnect: false, pingInterval: 20_000 });
      if (stop.aborted) return void next.close();
      const last = current;
      current = next;
      failures = 0;
      use(next);
      void last?.close();
      const closed = next.closed().then(() => {
        if (current === next && !stop.aborted) use(undefined);
      });
      await Promise.race([closed, sleep(seconds * 600, stop)]);
    } catch {
      // Browsers that a restart of the server has cut off do not all come back at once.
      await sleep(Math.min(5_000, 200 * 2 ** failures++) * (0.5 + Math.random()), stop);
    }
  }
}

const sleep = (milliseconds: number, stop: AbortSignal) =>
  new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      stop.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    stop.addEventListener("abort", end);
  });
