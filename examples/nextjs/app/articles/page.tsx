import { RefreshWhenRelayed } from "@/app/refresh";
import { readArticles } from "@/lib/content";
import Link from "next/link";

export default async function Page() {
  const articles = await readArticles();
  return (
    <article>
      <RefreshWhenRelayed subject="relayed.cache.article.*" />
      <h1>Articles</h1>
      <ul>
        {articles.map(({ id, title }) => (
          <li key={id}>
            <Link href={`/articles/${id}`}>{title}</Link>
          </li>
        ))}
      </ul>
    </article>
  );
}
