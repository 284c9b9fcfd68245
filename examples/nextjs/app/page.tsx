/** The same article in the editor and in three browsers. */
export default function Page() {
  const [first, second] = process.env.FRONTEND_URLS!.split(" ");
  return (
    <main>
      <header>
        <h1>Never stale</h1>
        <p>Save in the editor. The frontend needs a moment to drop its cached copy: a browser that refreshes before gets the old one.</p>
      </header>
      <Browser title="Editor" note="saves, and publishes cms.cache.article.1" src={process.env.BACKEND_URL!} />
      <Browser title="Without the relay" note="told by the backend, at once" src={`${first}/without/1`} />
      <Browser title="With the relay" note="told when the cached copy is gone" src={`${first}/articles/1`} />
      <Browser title="With the relay, second instance" note="has a cache of its own" src={`${second}/articles/1`} />
    </main>
  );
}

function Browser({ title, note, src }: { title: string; note: string; src: string }) {
  return (
    <section>
      <h2>
        {title} <small>{note}</small>
      </h2>
      <iframe title={title} src={src} />
    </section>
  );
}
